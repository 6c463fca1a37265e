#include "backend/ascend/libraries.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <sstream>

namespace danceflux::ascend {
namespace {

constexpr const char* kShiftVariable = "CLOSE_MATMUL_K_SHIFT";

struct Opened {
  void* handle = nullptr;
  std::string path;
};

/// Where the loader found it.
std::string path_of(void* handle, const std::string& asked) {
  link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || !map || !map->l_name || !*map->l_name) return asked;
  return map->l_name;
}

/// The first candidate that opens. LAZY, because these libraries have symbols of drivers that may be absent
/// where a function is never called.
Opened open_first(const std::vector<std::string>& candidates, int scope, std::string* words) {
  for (const std::string& path : candidates) {
    if (void* handle = dlopen(path.c_str(), RTLD_LAZY | scope)) return {handle, path_of(handle, path)};
    const char* error = dlerror();
    // What the loader says of a file that is there tells more than "not found" of the bare name.
    if (words && (words->empty() || path.find('/') != std::string::npos)) *words = error ? error : path;
  }
  return {};
}

void* find_symbol(const std::vector<Opened>& libraries, const char* name, std::string* path = nullptr) {
  for (const Opened& library : libraries) {
    if (void* symbol = dlsym(library.handle, name)) {
      if (path) *path = library.path;
      return symbol;
    }
  }
  return nullptr;
}

class Opening {
 public:
  explicit Opening(Surroundings here) : here_(std::move(here)) {}

  Cann run() {
    close_k_shift();
    if (open_runtime() && start()) {
      open_operators();
      open_hccl();
    }
    return std::move(cann_);
  }

 private:
  /// The order of a product's sum must not depend on where its row stands. Operators read this variable when
  /// they are opened, and there is no option in its place. Whoever wants the shift says so there.
  void close_k_shift() {
    setenv(kShiftVariable, "1", 0);
    if (const char* value = std::getenv(kShiftVariable); std::strcmp(value, "1") != 0)
      cann_.notes.push_back(std::string(kShiftVariable) + "=" + value +
                            ": a row's bits depend on its place in the batch; 1 would prevent it");
  }

  bool fail(std::string failure, std::string hint) {
    cann_.failure = std::move(failure);
    cann_.hint = std::move(hint);
    return false;
  }

  bool note(const Opened& library) {
    if (!library.handle) return false;
    cann_.libraries.push_back(library.path);
    return true;
  }

  bool open_runtime() {
    std::string words;
    std::vector<Opened> libraries;
    // 9 has the runtime in libacl_rt.so as well; libascendcl.so is in both.
    for (const char* soname : {"libascendcl.so", "libacl_rt.so"}) {
      const Opened library = open_first(library_candidates(here_, soname), RTLD_GLOBAL, &words);
      if (note(library)) libraries.push_back(library);
    }
    if (libraries.empty()) return fail("libascendcl.so does not open: " + words, loading_hint(here_));
    words.clear();
    const Opened nnop = open_first(library_candidates(here_, "libnnopbase.so"), RTLD_GLOBAL, &words);
    if (!note(nnop)) return fail("libnnopbase.so does not open: " + words, loading_hint(here_));
    libraries.push_back(nnop);
    std::vector<std::string> missing;
#define DF_FIND(result, name, parameters)                                                     \
  cann_.acl.name = reinterpret_cast<decltype(cann_.acl.name)>(find_symbol(libraries, #name)); \
  if (!cann_.acl.name) missing.emplace_back(#name);
    DANCEFLUX_ACL_FUNCTIONS(DF_FIND)
    DANCEFLUX_NNOP_FUNCTIONS(DF_FIND)
    if (!missing.empty())
      return fail(join(cann_.libraries, ", ") + ": expected CANN 8.0 or newer, got one without " +
                      join(missing, ", "),
                  "install a newer CANN toolkit");
    DANCEFLUX_ACL_OPTIONAL(DF_FIND)
    DANCEFLUX_NNOP_OPTIONAL(DF_FIND)
#undef DF_FIND
    return true;
  }

  bool start() {
    const AclStatus status = cann_.acl.aclInit(nullptr);
    if (status != kAclSuccess && status != kAclRepeatInitialize) {
      const char* words = cann_.acl.aclGetRecentErrMsg();
      return fail("aclInit: error " + std::to_string(status) + (words ? std::string(": ") + words : ""),
                  loading_hint(here_));
    }
    AclPackageVersion told{};
    if (cann_.acl.aclsysGetCANNVersion &&
        cann_.acl.aclsysGetCANNVersion(kPackageCann, &told) == kAclSuccess) {
      told.version[sizeof told.version - 1] = '\0';
      cann_.version = read_version(told.version);
    } else if (std::int32_t major = 0, minor = 0, patch = 0;
               cann_.acl.aclrtGetVersion(&major, &minor, &patch) == kAclSuccess) {
      std::ostringstream text;
      text << "acl " << major << '.' << minor << '.' << patch;
      cann_.version.text = text.str();
    }
    const char* soc = cann_.acl.aclrtGetSocName();
    cann_.soc = soc ? soc : "";
    cann_.chip = chip_of(cann_.soc);
    if (cann_.chip == Chip::gen1 || cann_.chip == Chip::inference)
      return fail(
          "expected a chip that multiplies f32 matrices (Ascend 910B, 910_93 or 950), got " + cann_.soc,
          "the chip's matrix unit knows f16 only, which is too narrow to train with");
    return true;
  }

  void open_operators() {
    const OperatorLibraries wanted = operator_libraries(here_);
    cann_.notes.insert(cann_.notes.end(), wanted.notes.begin(), wanted.notes.end());
    std::vector<Opened> libraries;
    for (const std::string& path : wanted.paths) {
      std::string words;
      const Opened library = open_first({path}, RTLD_LOCAL, &words);
      const bool known = std::any_of(libraries.begin(), libraries.end(),
                                     [&](const Opened& each) { return each.handle == library.handle; });
      if (known) continue;
      if (note(library)) {
        libraries.push_back(library);
      } else if (path.find('/') != std::string::npos) {
        cann_.notes.push_back(words);
      }
    }
    cann_.operators.for_each([&](OperatorSymbols& each) {
      for (const Opened& library : libraries) {  // both halves of one library
        each.plan = dlsym(library.handle, (std::string(each.name) + "GetWorkspaceSize").c_str());
        each.execute = dlsym(library.handle, each.name);
        if (!each.found()) continue;
        each.library = strdup(library.path.c_str());  // as long as the process, like the library
        return;
      }
      each.plan = each.execute = nullptr;
      cann_.missing_operators.emplace_back(each.name);
    });
  }

  void open_hccl() {
    std::vector<Opened> libraries;
    std::string words;
    for (const char* soname : {"libhcomm.so", "libhccl.so"}) {
      const Opened library = open_first(library_candidates(here_, soname), RTLD_GLOBAL, &words);
      if (note(library)) libraries.push_back(library);
    }
    if (libraries.empty()) cann_.notes.push_back("libhccl.so does not open: " + words);
#define DF_FIND(result, name, parameters)                                                       \
  cann_.hccl.name = reinterpret_cast<decltype(cann_.hccl.name)>(find_symbol(libraries, #name)); \
  if (!cann_.hccl.name) cann_.missing_hccl.emplace_back(#name);
    DANCEFLUX_HCCL_FUNCTIONS(DF_FIND)
    cann_.has_hccl = cann_.missing_hccl.empty();
    DANCEFLUX_HCCL_OPTIONAL(DF_FIND)
#undef DF_FIND
  }

  const Surroundings here_;
  Cann cann_;
};

}  // namespace

std::string join(const std::vector<std::string>& parts, const char* separator) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : separator) + part;
  return text;
}

CannVersion read_version(const std::string& text) {
  CannVersion version{0, 0, text};
  const char* at = text.c_str();
  if (!std::isdigit(static_cast<unsigned char>(*at))) return version;
  char* end = nullptr;
  const long major = std::strtol(at, &end, 10);
  if (*end != '.' || !std::isdigit(static_cast<unsigned char>(end[1]))) return version;
  version.major = static_cast<int>(major);
  version.minor = static_cast<int>(std::strtol(end + 1, nullptr, 10));
  return version;
}

Chip chip_of(const std::string& soc) {
  const auto starts = [&](const char* with) { return soc.starts_with(with); };
  if (starts("Ascend310")) return Chip::inference;
  if (starts("Ascend950")) return Chip::a5;
  if (starts("Ascend910_93")) return Chip::a3;
  if (starts("Ascend910B") && soc.size() > 10 && std::isdigit(static_cast<unsigned char>(soc[10])))
    return Chip::a2;
  if (starts("Ascend910")) return Chip::gen1;
  return Chip::unknown;
}

const Cann& cann() {
  static const Cann& found = *new Cann(Opening(real_surroundings()).run());
  return found;
}

void find_operator(const std::string& library, OperatorSymbols& wanted) {
  if (wanted.found()) return;
  void* const handle = dlopen(library.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (!handle) return;
  wanted.plan = dlsym(handle, (std::string(wanted.name) + "GetWorkspaceSize").c_str());
  wanted.execute = dlsym(handle, wanted.name);
}

}  // namespace danceflux::ascend
