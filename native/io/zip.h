// Zip archives whose entries are stored, not compressed: what torch.save writes.
#pragma once
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/mapped_file.h"

namespace danceflux::io {

/// One file of the archive; both views point into the mapping.
struct ZipEntry {
  std::string_view name, data;
};

class StoredZip {
 public:
  /// Reads the directory at the end (zip64 too) and checks it against every local header: names, methods,
  /// sizes, bounds, and that no two entries share a byte. Checksums are not: PyTorch may leave them out, and
  /// the weights are gigabytes. Throws ERR_PICKLE naming `path` and the entry for whatever disagrees, for
  /// compressed, encrypted or split archives, and for two entries of one name. `file` must outlive it.
  StoredZip(const MappedFile& file, const std::string& path);

  /// In the order of the directory.
  const std::vector<ZipEntry>& entries() const { return entries_; }
  /// Null when there is none.
  const ZipEntry* find(std::string_view name) const;

 private:
  std::vector<ZipEntry> entries_;
  std::unordered_map<std::string_view, std::size_t> positions_;
};

}  // namespace danceflux::io
