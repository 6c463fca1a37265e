// A file as memory, read only.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace danceflux::io {

class MappedFile {
 public:
  /// Throws ERR_FILE with the system's reason; an empty file or a folder is refused too.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::string_view text(std::size_t offset, std::size_t length) const {
    return {reinterpret_cast<const char*>(data_) + offset, length};
  }
  /// Bytes that will hardly be read again leave the process's memory; read all the same, they come back from
  /// the file. `from` points into data(); nothing happens for a part outside.
  void release(const std::byte* from, std::size_t bytes) const;

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace danceflux::io
