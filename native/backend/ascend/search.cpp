#include "backend/ascend/search.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

namespace danceflux::ascend {
namespace {

#if defined(__aarch64__)
constexpr const char* kArchFolder = "aarch64-linux";
#else
constexpr const char* kArchFolder = "x86_64-linux";
#endif

constexpr const char* kUsualHomes[] = {"/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann",
                                       "/usr/local/Ascend/latest"};
constexpr const char* kUsualHomesOfUser[] = {"/Ascend/ascend-toolkit/latest", "/Ascend/cann",
                                             "/Ascend/latest"};
constexpr const char* kCustomLibrary = "/op_api/lib/libcust_opapi.so";
// The last resort of some releases.
constexpr const char* kFeatureLibraries[] = {"libaclnn_ops_infer.so", "libaclnn_ops_train.so",
                                             "libaclnn_math.so", "libaclnn_rand.so"};
constexpr std::size_t kMostText = 64 << 10;

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) {
    if (!part.empty()) parts.push_back(part);
  }
  return parts;
}

std::vector<std::string> library_folders(const std::string& home) {
  return {home + "/lib64", home + "/" + kArchFolder + "/lib64"};
}

/// Vendors below opp/vendors in the order that their config.ini gives ("load_priority=a,b"), then by name.
std::vector<std::string> vendors(const Surroundings& here, const std::string& folder) {
  std::vector<std::string> names;
  const std::string key = "load_priority=";
  for (const std::string& line : split(here.read(folder + "/config.ini"), '\n')) {
    if (line.compare(0, key.size(), key) != 0) continue;
    for (std::string name : split(line.substr(key.size()), ',')) {
      name.erase(std::remove_if(name.begin(), name.end(), [](char c) { return c == ' ' || c == '\r'; }),
                 name.end());
      names.push_back(name);
    }
  }
  for (const std::string& name : here.list(folder)) {
    if (name != "config.ini") names.push_back(name);
  }
  return names;
}

/// Adds a path once, if it is there and may be trusted.
class Collector {
 public:
  Collector(const Surroundings& here, OperatorLibraries& found) : here_(here), found_(found) {}
  void add(const std::string& path) {
    if (!seen_.insert(path).second || !here_.exists(path)) return;
    if (here_.trusted(path)) {
      found_.paths.push_back(path);
    } else {
      found_.notes.push_back(path + " belongs to somebody else and is left alone");
    }
  }

 private:
  const Surroundings& here_;
  OperatorLibraries& found_;
  std::set<std::string> seen_;
};

}  // namespace

Surroundings real_surroundings() {
  Surroundings here;
  here.variable = [](const std::string& name) {
    const char* value = std::getenv(name.c_str());
    return std::string(value ? value : "");
  };
  here.list = [](const std::string& folder) {
    std::vector<std::string> names;
    if (DIR* entries = opendir(folder.c_str())) {
      while (const dirent* entry = readdir(entries)) {
        if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
      }
      closedir(entries);
    }
    std::sort(names.begin(), names.end());
    return names;
  };
  here.exists = [](const std::string& path) {
    struct stat status {};
    return stat(path.c_str(), &status) == 0;
  };
  here.trusted = [](const std::string& path) {
    struct stat status {};
    return stat(path.c_str(), &status) == 0 && (status.st_uid == 0 || status.st_uid == geteuid());
  };
  here.read = [](const std::string& path) {
    std::ifstream file(path);
    std::string text((std::istreambuf_iterator<char>(file)), {});
    return text.size() > kMostText ? std::string() : text;
  };
  return here;
}

Homes find_homes(const Surroundings& here) {
  Homes homes;
  const auto add = [](std::vector<std::string>& list, const std::string& home) {
    if (!home.empty() && std::find(list.begin(), list.end(), home) == list.end()) list.push_back(home);
  };
  add(homes.named, here.variable("ASCEND_HOME_PATH"));
  add(homes.named, here.variable("ASCEND_TOOLKIT_HOME"));
  for (const char* home : kUsualHomes) {
    if (here.exists(home)) add(homes.usual, home);
  }
  const std::string user = here.variable("HOME");
  for (const char* home : kUsualHomesOfUser) {
    if (!user.empty() && here.exists(user + home)) add(homes.usual, user + home);
  }
  return homes;
}

std::vector<std::string> library_candidates(const Surroundings& here, const std::string& soname) {
  const Homes homes = find_homes(here);
  std::vector<std::string> candidates;
  const auto add_below = [&](const std::vector<std::string>& places) {
    for (const std::string& home : places) {
      for (const std::string& folder : library_folders(home)) {
        if (here.exists(folder + "/" + soname)) candidates.push_back(folder + "/" + soname);
      }
    }
  };
  add_below(homes.named);
  candidates.push_back(soname);
  add_below(homes.usual);
  return candidates;
}

OperatorLibraries operator_libraries(const Surroundings& here) {
  OperatorLibraries found;
  Collector collector(here, found);
  for (const std::string& folder : split(here.variable("ASCEND_CUSTOM_OPP_PATH"), ':')) {
    collector.add(folder + kCustomLibrary);
  }
  const std::string opp = here.variable("ASCEND_OPP_PATH");
  if (!opp.empty()) {
    for (const std::string& vendor : vendors(here, opp + "/vendors")) {
      collector.add(opp + "/vendors/" + vendor + kCustomLibrary);
    }
  }
  const Homes homes = find_homes(here);
  for (const auto* places : {&homes.named, &homes.usual}) {
    for (const std::string& home : *places) {
      for (const std::string& folder : library_folders(home)) {
        for (const std::string& name : here.list(folder)) {
          if (name.starts_with("libopapi_") && name.ends_with(".so")) collector.add(folder + "/" + name);
        }
      }
    }
  }
  const auto add_by_name = [&](const std::string& soname) {
    for (const std::string& path : library_candidates(here, soname)) {
      if (path == soname) {
        found.paths.push_back(path);  // the loader's path: who owns it is the system's business
      } else {
        collector.add(path);
      }
    }
  };
  add_by_name("libopapi.so");
  for (const char* name : kFeatureLibraries) add_by_name(name);
  return found;
}

std::string loading_hint(const Surroundings& here) {
  const Homes homes = find_homes(here);
  if (homes.named.empty() && !homes.usual.empty()) {
    return "CANN is in " + homes.usual.front() + ", but its environment is not set: run \"source " +
           homes.usual.front() + "/set_env.sh\" in the shell that starts node (it cannot be done later)";
  }
  if (homes.named.empty()) {
    return "install the CANN toolkit and kernels, 8.0 or newer, and source its set_env.sh in the shell that "
           "starts node";
  }
  if (here.variable("LD_LIBRARY_PATH").find(homes.named.front()) == std::string::npos) {
    return "ASCEND_HOME_PATH is set, but LD_LIBRARY_PATH does not name it: run \"source " +
           homes.named.front() + "/set_env.sh\" in the shell that starts node";
  }
  return "see that the Ascend driver is installed and that its lib64 folders (driver and common) are on "
         "LD_LIBRARY_PATH";
}

}  // namespace danceflux::ascend
