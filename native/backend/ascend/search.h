// Where CANN's libraries may lie, for the layouts of 8 and of 9. Nothing here opens a library: this is text
// made of the environment and of what folders hold, so that it can be tested without CANN.
#pragma once
#include <functional>
#include <string>
#include <vector>

namespace danceflux::ascend {

/// The environment and the file system, as far as the search sees them.
struct Surroundings {
  /// The value of a variable, or "".
  std::function<std::string(const std::string& name)> variable;
  /// The names in a folder, sorted; empty when there is none.
  std::function<std::vector<std::string>(const std::string& folder)> list;
  /// Does the file (or folder) exist?
  std::function<bool(const std::string& path)> exists;
  /// Does the file belong to root or to us? A library of somebody else is not opened.
  std::function<bool(const std::string& path)> trusted;
  /// The text of a small file, or "".
  std::function<std::string(const std::string& path)> read;
};
Surroundings real_surroundings();

/// Folders that CANN was installed to: those that set_env.sh names, then the usual ones that exist.
struct Homes {
  std::vector<std::string> named, usual;
};
Homes find_homes(const Surroundings& here);

/// What to hand to dlopen, in order, for a library such as libascendcl.so: below the named homes, by its name
/// alone (the loader's own path), below the usual homes.
std::vector<std::string> library_candidates(const Surroundings& here, const std::string& soname);

struct OperatorLibraries {
  std::vector<std::string> paths;  // in the order of preference
  std::vector<std::string> notes;  // what was left out, and why
};
/// Libraries of operators: those of users first (ASCEND_CUSTOM_OPP_PATH, then the vendors of ASCEND_OPP_PATH
/// by their load_priority), then libopapi_<domain>.so (CANN 9), then libopapi.so (CANN 8), then what some
/// releases split it into.
OperatorLibraries operator_libraries(const Surroundings& here);

/// What a person does when libraries were not found or did not open.
std::string loading_hint(const Surroundings& here);

}  // namespace danceflux::ascend
