// A plugin's file, read without opening it: which libraries it wants and what brings each.
#pragma once
#include <string>
#include <vector>

namespace danceflux {

struct VendorLibrary {
  std::string soname;
  std::string brought_by;  // empty when the plugin does not say
};

/// The libraries that an ELF file asks the loader for, less those of the C library and the engine, and those
/// of its list (DANCEFLUX_PLUGIN_NEEDS). Empty for a file that is not 64-bit ELF or does not hold together.
std::vector<VendorLibrary> vendor_libraries(const std::string& path);

/// Those that do not open, with the loader's words when they say more than "not found" (a library of theirs
/// is missing).
struct MissingLibrary {
  VendorLibrary library;
  std::string reason;
};
std::vector<MissingLibrary> missing_libraries(const std::vector<VendorLibrary>& wanted);

}  // namespace danceflux
