// A file that appears whole or not at all.
#pragma once
#include <cstddef>
#include <string>

namespace danceflux::io {

/// Written beside its final place under a temporary name; commit() syncs it, renames it and syncs the folder.
/// Without commit() nothing remains. Everything throws ERR_FILE with the system's reason.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, std::size_t bytes);
  void commit();

 private:
  [[noreturn]] void refuse(const char* what) const;

  std::string path_, temporary_;
  int file_ = -1;
};

}  // namespace danceflux::io
