#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace danceflux::io {

MappedFile::MappedFile(const std::string& path) {
  const int file =
      ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe would wait for its writer
  require(file >= 0, "ERR_FILE", path, ": cannot be opened: ", std::strerror(errno));
  struct stat info {};
  const bool known = ::fstat(file, &info) == 0;
  const bool folder = known && S_ISDIR(info.st_mode);
  const bool regular = known && S_ISREG(info.st_mode) && info.st_size > 0;
  void* mapped = MAP_FAILED;
  if (regular)
    mapped = ::mmap(nullptr, static_cast<std::size_t>(info.st_size), PROT_READ, MAP_PRIVATE, file, 0);
  const int reason = errno;
  ::close(file);
  require(!folder, "ERR_FILE", path, ": expected a file, got a folder");
  require(regular, "ERR_FILE", path, ": expected a file that is not empty");
  require(mapped != MAP_FAILED, "ERR_FILE", path, ": cannot be mapped: ", std::strerror(reason));
  data_ = static_cast<const std::byte*>(mapped);
  size_ = static_cast<std::size_t>(info.st_size);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release(const std::byte* from, std::size_t bytes) const {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::byte* const last = std::min(from + bytes, data_ + size_);
  if (from < data_ || from >= last) return;
  // Whole pages only: what shares a page with its neighbours may still be wanted.
  const std::size_t begin = (static_cast<std::size_t>(from - data_) + page - 1) / page * page;
  const std::size_t end = static_cast<std::size_t>(last - data_) / page * page;
  // A wish: refusal costs memory only.
  if (begin < end) ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

}  // namespace danceflux::io
