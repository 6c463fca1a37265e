// What the door offers without a device: generators, files, what was found on this machine.
#pragma once
#include <napi.h>

namespace danceflux::addon {

class TorchGeneratorWrap;

/// Adds createTorchGenerator, keyedNormal, inspectFile, readTensor, probeBackends, liveHandles and shutdown
/// to `exports`, and what define_measures() does.
void define_host_functions(Napi::Env env, Napi::Object exports);
/// Adds Measure, PairMeasure, measureStored and crc32 (measure_wrap.cpp).
void define_measures(Napi::Env env, Napi::Object exports);

}  // namespace danceflux::addon
