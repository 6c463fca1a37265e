#include "backend/plugin_file.h"

#include <dlfcn.h>
#include <elf.h>

#include <cstring>
#include <fstream>
#include <sstream>

namespace danceflux {
namespace {

constexpr std::size_t kMaxSection = 1 << 20;  // names and dynamic tables are kilobytes; more is not a plugin

class ElfFile {
 public:
  explicit ElfFile(const std::string& path) : file_(path, std::ios::binary) {
    Elf64_Ehdr header{};
    if (!read(0, &header, sizeof header) || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return;
    if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_shentsize != sizeof(Elf64_Shdr)) return;
    sections_.resize(header.e_shnum);
    if (!read(header.e_shoff, sections_.data(), sections_.size() * sizeof(Elf64_Shdr))) sections_.clear();
    if (header.e_shstrndx < sections_.size()) names_ = content(sections_[header.e_shstrndx]);
  }

  /// Content of the section with that name, or empty.
  std::string section(const std::string& name) {
    for (const Elf64_Shdr& section : sections_)
      if (string_at(names_, section.sh_name) == name) return content(section);
    return {};
  }

  /// The DT_NEEDED entries.
  std::vector<std::string> needed() {
    std::vector<std::string> result;
    for (const Elf64_Shdr& section : sections_) {
      if (section.sh_type != SHT_DYNAMIC || section.sh_link >= sections_.size()) continue;
      const std::string entries = content(section), strings = content(sections_[section.sh_link]);
      for (std::size_t at = 0; at + sizeof(Elf64_Dyn) <= entries.size(); at += sizeof(Elf64_Dyn)) {
        Elf64_Dyn entry;
        std::memcpy(&entry, entries.data() + at, sizeof entry);
        if (entry.d_tag == DT_NEEDED) result.push_back(string_at(strings, entry.d_un.d_val));
      }
    }
    return result;
  }

 private:
  bool read(std::uint64_t offset, void* to, std::size_t bytes) {
    file_.clear();
    file_.seekg(static_cast<std::streamoff>(offset));
    file_.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
    return static_cast<bool>(file_);
  }
  std::string content(const Elf64_Shdr& section) {
    if (section.sh_type == SHT_NOBITS || section.sh_size > kMaxSection) return {};
    std::string bytes(section.sh_size, '\0');
    return read(section.sh_offset, bytes.data(), bytes.size()) ? bytes : std::string();
  }
  static std::string string_at(const std::string& table, std::uint64_t offset) {
    if (offset >= table.size()) return {};
    return table.substr(offset, table.find('\0', offset) - offset);
  }

  std::ifstream file_;
  std::vector<Elf64_Shdr> sections_;
  std::string names_;
};

bool always_there(const std::string& soname) {
  static constexpr const char* kPrefixes[] = {
      "libc.so",  "libm.so",     "libdl.so",     "libpthread.so",        "librt.so",
      "ld-linux", "libgcc_s.so", "libstdc++.so", "libdanceflux_core.so", "libdanceflux_gloo_bridge.so"};
  for (const char* prefix : kPrefixes)
    if (soname.compare(0, std::strlen(prefix), prefix) == 0) return true;
  return false;
}

}  // namespace

std::vector<VendorLibrary> vendor_libraries(const std::string& path) {
  ElfFile file(path);
  std::vector<VendorLibrary> result;
  std::istringstream lines(file.section(".danceflux_needs"));
  for (std::string line; std::getline(lines, line);) {
    const std::size_t tab = line.find('\t');
    if (tab != std::string::npos) result.push_back({line.substr(0, tab), line.substr(tab + 1)});
  }
  for (const std::string& soname : file.needed()) {
    bool listed = soname.empty() || always_there(soname);
    for (const VendorLibrary& library : result) listed = listed || library.soname == soname;
    if (!listed) result.push_back({soname, ""});
  }
  return result;
}

std::vector<MissingLibrary> missing_libraries(const std::vector<VendorLibrary>& wanted) {
  std::vector<MissingLibrary> result;
  for (const VendorLibrary& library : wanted) {
    if (dlopen(library.soname.c_str(), RTLD_LAZY | RTLD_LOCAL)) continue;
    const char* words = dlerror();
    const std::string reason = words ? words : "";
    result.push_back({library, reason.compare(0, library.soname.size(), library.soname) == 0 ? "" : reason});
  }
  return result;
}

}  // namespace danceflux
