// Communicators that JavaScript holds, and those in the making.
#pragma once
#include <napi.h>

#include <memory>

#include "addon/tensor_wrap.h"

namespace danceflux {
class Communicator;
}

namespace danceflux::addon {

void define_communicators(Napi::Env env);
/// device.createCommunicator(options)
Napi::Value make_communicator(const Napi::CallbackInfo& info, const std::shared_ptr<OpenDevice>& device);

/// The communicator of a handle; its calls are for the device's thread. Throws ERR_ARGUMENT for anything
/// else, ERR_DISPOSED after dispose().
std::shared_ptr<Communicator> communicator_of(const Napi::Object& object);

}  // namespace danceflux::addon
