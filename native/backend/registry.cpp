#include "backend/registry.h"

#include <dirent.h>
#include <dlfcn.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <utility>

#include "backend/backend.h"
#include "backend/communicator.h"
#include "backend/cpu/collective.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/options.h"
#include "backend/plugin.h"
#include "backend/plugin_file.h"
#include "core/error.h"

namespace danceflux {
namespace {

constexpr const char* kKnownPlugins[] = {"ascend", "cuda", "gloo"};
// Engines of collectives and the plugins that bring them, where the names differ.
constexpr std::pair<const char*, const char*> kEngines[] = {{"hccl", "ascend"}, {"nccl", "cuda"}};
constexpr std::string_view kFilePrefix = "danceflux_", kFileSuffix = ".so";

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);)
    if (!part.empty()) parts.push_back(part);
  return parts;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

/// The folder of the library that this function is in.
std::string own_folder() {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<const void*>(&probe_backends), &info) || !info.dli_fname) return ".";
  char* real = realpath(info.dli_fname, nullptr);
  std::string path = real ? real : info.dli_fname;
  std::free(real);
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

std::vector<std::string> plugin_folders() {
  std::vector<std::string> folders = split(environment("DANCEFLUX_PLUGIN_PATH"), ':');
  folders.push_back(own_folder());
  return folders;
}

std::string plugin_path(const std::string& name) {
  for (const std::string& folder : plugin_folders()) {
    const std::string path = folder + "/" + std::string(kFilePrefix) + name + std::string(kFileSuffix);
    struct stat status {};
    if (stat(path.c_str(), &status) == 0) return path;
  }
  return {};
}

std::set<std::string> plugin_names() {
  std::set<std::string> names(std::begin(kKnownPlugins), std::end(kKnownPlugins));
  for (const std::string& folder : plugin_folders()) {
    DIR* entries = opendir(folder.c_str());
    if (!entries) continue;
    while (const dirent* entry = readdir(entries)) {
      const std::string_view file = entry->d_name;
      if (file.size() <= kFilePrefix.size() + kFileSuffix.size() || !file.starts_with(kFilePrefix) ||
          !file.ends_with(kFileSuffix))
        continue;
      names.emplace(file.substr(kFilePrefix.size(), file.size() - kFilePrefix.size() - kFileSuffix.size()));
    }
    closedir(entries);
  }
  return names;
}

bool disabled(const std::string& name) {
  const std::vector<std::string> list = split(environment("DANCEFLUX_DISABLE_BACKENDS"), ',');
  return std::any_of(list.begin(), list.end(),
                     [&](const std::string& entry) { return entry == name || entry == "all"; });
}

/// Before its file is opened, only the names that this project knows tell what a plugin is.
bool known_for_collectives(const std::string& name) { return name == "gloo"; }

struct Plugin {
  const PluginInfo* info = nullptr;  // set when READY
  BackendReport report;
};

std::string list_folders() {
  std::string list;
  for (const std::string& folder : plugin_folders()) list += (list.empty() ? "" : ", ") + folder;
  return list;
}

/// Tells every library that is missing: the loader itself names only the first.
void explain_load_failure(const std::string& path, const std::string& words, BackendReport& report) {
  report.state = "PLUGIN_LOAD_FAILED";
  report.message = words;
  const std::vector<MissingLibrary> missing = missing_libraries(vendor_libraries(path));
  if (missing.empty()) return;
  std::ostringstream list, sources;
  std::set<std::string> told;
  for (const MissingLibrary& each : missing) {
    list << (&each == &missing.front() ? "" : ", ") << each.library.soname;
    if (!each.reason.empty()) list << " (" << each.reason << ")";
    if (!each.library.brought_by.empty() && told.insert(each.library.brought_by).second)
      sources << (told.size() == 1 ? "" : "; ") << each.library.brought_by;
  }
  report.message = "missing " + list.str();
  report.hint = sources.str();
}

void read_probe(const PluginInfo& info, Plugin& plugin) {
  PluginProbe found;
  try {
    info.probe(&found);
  } catch (const std::exception& error) {
    plugin.report.state = "PLUGIN_BAD";
    plugin.report.message = std::string("its probe threw: ") + error.what();
    return;
  }
  found.message[sizeof found.message - 1] = found.hint[sizeof found.hint - 1] = '\0';
  plugin.report.message = found.message;
  plugin.report.hint = found.hint;
  plugin.report.collectives = !info.create;
  if (found.state == ProbeState::ready && (found.devices > 0 || !info.create)) {
    plugin.report.state = "READY";
    plugin.report.devices = found.devices;
    plugin.info = &info;
  } else {
    plugin.report.state = found.state == ProbeState::driver_too_old ? "DRIVER_TOO_OLD" : "NO_DEVICE";
  }
}

Plugin load_plugin(const std::string& name, const std::string& path) {
  Plugin plugin;
  BackendReport& report = plugin.report;
  report.name = name;
  report.collectives = known_for_collectives(name);
  // NOW: a symbol that is missing shows here and not in the middle of a training run.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char* words = dlerror();
    explain_load_failure(path, words ? words : "dlopen failed without a word", report);
    return plugin;
  }
  report.state = "PLUGIN_BAD";
  const auto entry = reinterpret_cast<decltype(&danceflux_plugin)>(dlsym(handle, "danceflux_plugin"));
  const PluginInfo* info = entry ? entry() : nullptr;
  if (!info) {
    report.message = path + (entry ? ": danceflux_plugin() returned nothing"
                                   : ": expected an entry danceflux_plugin, got none");
    report.hint = "remove the file, or install the one that belongs to this version";
  } else if (info->abi != DANCEFLUX_PLUGIN_ABI) {
    report.state = "PLUGIN_ABI";
    report.message = path + ": expected plugin abi " + std::to_string(DANCEFLUX_PLUGIN_ABI) + ", got " +
                     std::to_string(info->abi);
    report.hint = "install the plugin of the same version, or rebuild it: npm run build:native";
  } else if (!info->name || name != info->name || !info->probe ||
             (!info->create && !info->create_communicator)) {
    report.message = path + ": expected a plugin named " + name + " with probe and create, got " +
                     (info->name ? info->name : "no name");
  } else {
    read_probe(*info, plugin);
  }
  return plugin;
}

BackendReport not_shipped(const std::string& name) {
  return {name,
          "PLUGIN_NOT_SHIPPED",
          0,
          "no " + std::string(kFilePrefix) + name + std::string(kFileSuffix) + " in " + list_folders(),
          "a folder that has it can be named in DANCEFLUX_PLUGIN_PATH",
          known_for_collectives(name)};
}

/// Opened plugins by path. Never destroyed: threads may still run in them while the process ends.
const Plugin& opened_plugin(const std::string& name, const std::string& path) {
  static std::mutex& mutex = *new std::mutex;
  static std::map<std::string, Plugin>& opened = *new std::map<std::string, Plugin>;
  const std::lock_guard lock(mutex);
  const auto known = opened.find(path);
  return known != opened.end() ? known->second : opened.emplace(path, load_plugin(name, path)).first->second;
}

Plugin find_plugin(const std::string& name) {
  if (disabled(name))
    return {nullptr,
            {name, "DISABLED_BY_USER", 0, "DANCEFLUX_DISABLE_BACKENDS names it",
             "unset DANCEFLUX_DISABLE_BACKENDS", known_for_collectives(name)}};
  const std::string path = plugin_path(name);
  return path.empty() ? Plugin{nullptr, not_shipped(name)} : opened_plugin(name, path);
}

bool is_plugin_name(const std::string& name) {
  return !name.empty() &&
         name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == std::string::npos;
}

/// Throws the plugin's state when it cannot be used.
Plugin ready_plugin(const std::string& name) {
  Plugin plugin = find_plugin(name);
  if (!plugin.info)
    throw Error("ERR_" + plugin.report.state, name + ": " + plugin.report.message, plugin.report.hint);
  return plugin;
}

std::shared_ptr<Backend> open_built_in(int index, const std::string& options_json) {
  require(index == 0, "ERR_DEVICE", "cpu: expected device 0, got ", index);
  const DeviceOptions options = DeviceOptions::parse(options_json);
  options.allow_only("cpu", {"threads", "isa"});
  const std::int64_t threads = options.integer("threads", 0);
  require(threads >= 0 && threads <= 4096, "ERR_OPTION", "option threads: expected 0 (all) to 4096, got ",
          threads);
  return cpu::open_cpu({static_cast<int>(threads), options.text("isa", "")});
}

}  // namespace

std::vector<BackendReport> probe_backends() {
  std::vector<BackendReport> reports;
  reports.push_back({"cpu", "READY", 1, cpu::open_cpu({})->description(), ""});
  for (const std::string& name : plugin_names()) reports.push_back(find_plugin(name).report);
  return reports;
}

std::shared_ptr<Backend> open_backend(const std::string& name, int index, const std::string& options_json) {
  if (name == "cpu") return open_built_in(index, options_json);
  require(is_plugin_name(name), "ERR_DEVICE", "device: expected a name such as cpu, cuda or ascend, got ",
          name);
  const Plugin plugin = ready_plugin(name);
  require(plugin.info->create != nullptr, "ERR_DEVICE", name,
          ": expected a device, got an engine of collectives");
  require(index >= 0 && index < plugin.report.devices, "ERR_DEVICE", name, ": expected a device from 0 to ",
          plugin.report.devices - 1, ", got ", index);
  std::shared_ptr<Backend> backend(plugin.info->create(index, options_json.c_str()));
  require(backend != nullptr, "ERR_PLUGIN_BAD", name, ": its create() returned nothing");
  return backend;
}

std::unique_ptr<CommunicatorSetup> make_communicator_setup(const std::string& engine,
                                                           const std::shared_ptr<Backend>& device,
                                                           const CommunicatorOptions& options) {
  require(options.size >= 1 && options.rank >= 0 && options.rank < options.size, "ERR_OPTION",
          "communicator: expected a rank below its size, got rank ", options.rank, " of ", options.size);
  require(options.timeout_seconds > 0, "ERR_OPTION", "communicator: expected a timeout above 0 s, got ",
          options.timeout_seconds);
  if (engine == "shared-memory") return cpu::make_shared_memory_setup(device, options);
  require(is_plugin_name(engine), "ERR_OPTION",
          "engine: expected shared-memory, gloo, nccl, hccl or a plugin's name, got ", engine);
  std::string name = engine;
  for (const auto& [known, brought_by] : kEngines)
    if (engine == known) name = brought_by;
  const Plugin plugin = ready_plugin(name);
  require(plugin.info->create_communicator != nullptr, "ERR_OPTION",
          "engine: expected an engine of collectives, got ", name, ", which has none");
  std::unique_ptr<CommunicatorSetup> setup(plugin.info->create_communicator(device, options));
  require(setup != nullptr, "ERR_PLUGIN_BAD", name, ": its create_communicator() returned nothing");
  return setup;
}

}  // namespace danceflux
