// Which backends and engines of collectives there are. The cpu is built in; every other one is a plugin,
// danceflux_<name>.so, looked for in the folders of DANCEFLUX_PLUGIN_PATH (colon separated) and then beside
// this library. DANCEFLUX_DISABLE_BACKENDS=cuda,ascend (or "all") leaves plugins alone: they are neither
// opened nor probed.
#pragma once
#include <memory>
#include <string>
#include <vector>

namespace danceflux {

class Backend;
class CommunicatorSetup;
struct CommunicatorOptions;

/// `state` is READY, or why not:
///   PLUGIN_NOT_SHIPPED     no such file in any of the folders
///   PLUGIN_LOAD_FAILED     the file is there and does not open; every missing vendor library is listed, with
///   what brings it PLUGIN_BAD             not a plugin (no entry point), or its answers do not hold together
///   PLUGIN_ABI             compiled against another version of the engine
///   NO_DEVICE              the vendor's stack works and sees no device
///   DRIVER_TOO_OLD
///   DISABLED_BY_USER
struct BackendReport {
  std::string name;
  std::string state;
  int devices = 0;
  std::string message;
  std::string hint;          // the next thing to do, or empty
  bool collectives = false;  // it is an engine of collectives and brings no devices
};

/// The cpu, the backends and engines that this project knows by name, and every further plugin found. A
/// plugin is opened and probed once per process. Safe from any thread.
std::vector<BackendReport> probe_backends();

/// A backend on device `index` of `name` ("cpu", "cuda", ...). `options_json` as in backend/options.h.
/// Throws the state above as a code, ERR_PLUGIN_NOT_SHIPPED for instance; ERR_DEVICE when `index` is out of
/// range.
std::shared_ptr<Backend> open_backend(const std::string& name, int index, const std::string& options_json);

/// A communicator of `engine` in the making: "shared-memory" (built in: the ranks of one host, CPUs), "gloo",
/// "nccl" (of the plugin cuda), "hccl" (of ascend), or another plugin's name. Throws as open_backend does,
/// and ERR_OPTION when the plugin has no collectives or the options are not right.
std::unique_ptr<CommunicatorSetup> make_communicator_setup(const std::string& engine,
                                                           const std::shared_ptr<Backend>& device,
                                                           const CommunicatorOptions& options);

}  // namespace danceflux
