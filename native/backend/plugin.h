// What a plugin exports, a backend or an engine of collectives: danceflux_<name>.so beside the engine, opened
// at run time.
//
//   danceflux_add_plugin(cuda cuda_backend.cpp ...)                 in native/backend/cuda/CMakeLists.txt
//
//   DANCEFLUX_PLUGIN_NEEDS("libcudart.so.12\tCUDA 12 toolkit\n"     one vendor library a line, and what
//   brings it
//                          "libnccl.so.2\tNCCL\n")
//   static const danceflux::PluginInfo info{DANCEFLUX_PLUGIN_ABI, "cuda", probe, create};
//   extern "C" const danceflux::PluginInfo* danceflux_plugin() { return &info; }
//
// A plugin stays open until the process ends. Nothing in it may rely on the destructors of globals.
#pragma once
#include <cstdint>
#include <memory>

namespace danceflux {

class Backend;
class CommunicatorSetup;
struct CommunicatorOptions;

/// Raised whenever backend.h, communicator.h, core/ or this file changes in a way that a compiled plugin
/// would notice.
#define DANCEFLUX_PLUGIN_ABI 4u

enum class ProbeState : std::int32_t { ready = 0, no_device = 1, driver_too_old = 2 };

/// What a plugin found on this machine.
struct PluginProbe {
  ProbeState state = ProbeState::no_device;
  std::int32_t devices = 0;  // may be 0 when ready where the plugin brings no devices
  /// One line for people: device names when ready, otherwise what was looked for and what is there.
  char message[512] = {};
  /// What to do about it, or empty.
  char hint[512] = {};
};

struct PluginInfo {
  /// DANCEFLUX_PLUGIN_ABI of the headers it was compiled with. First for ever: it is read before anything
  /// else is trusted.
  std::uint32_t abi;
  /// As in the file name.
  const char* name;
  /// Really initialises the vendor's stack, so that "ready" means usable. Must not throw.
  void (*probe)(PluginProbe* found);
  /// A new backend on device `index`, owned by the caller. `options_json` is a JSON object, "{}" for none
  /// (backend/options.h). Throws danceflux::Error. Null: the plugin brings no devices, only collectives.
  Backend* (*create)(std::int32_t index, const char* options_json);
  /// A communicator in the making, for ranks whose devices are like `device`; owned by the caller. Throws
  /// danceflux::Error. Null: the plugin brings no collectives.
  CommunicatorSetup* (*create_communicator)(const std::shared_ptr<Backend>& device,
                                            const CommunicatorOptions& options) = nullptr;
};

}  // namespace danceflux

/// Kept in a section of its own, which the registry reads from the file when the vendor's libraries are
/// missing and the plugin cannot be opened.
#define DANCEFLUX_PLUGIN_NEEDS(lines)                                                  \
  extern "C" __attribute__((section(".danceflux_needs"), used, visibility("default"))) \
  const char danceflux_plugin_needs[] = lines;

extern "C" const danceflux::PluginInfo* danceflux_plugin();
