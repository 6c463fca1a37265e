#include "io/zip.h"

#include <algorithm>
#include <optional>

#include "io/byte_reader.h"

namespace danceflux::io {
namespace {

// Field order and widths: APPNOTE.TXT of the zip format, sections 4.3 and 4.5.3.
constexpr std::string_view kLocalMagic = "PK\x03\x04", kCentralMagic = "PK\x01\x02", kEndMagic = "PK\x05\x06";
constexpr std::string_view kEnd64Magic = "PK\x06\x06", kLocator64Magic = "PK\x06\x07";
constexpr std::uint64_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22, kEnd64Bytes = 56,
                        kLocator64Bytes = 20;
constexpr std::uint64_t kLongestComment = 65535;
constexpr std::uint32_t kSaturated16 = 0xffff, kSaturated32 = 0xffffffff;  // "look in the zip64 field"
constexpr std::uint16_t kZip64Extra = 1, kEncrypted = 1, kSizesFollow = 8, kStored = 0;

struct Directory {
  std::uint64_t entries, size, offset;
};

struct CentralRecord {
  std::string_view name;
  std::uint64_t size, header;  // `header`: where the local header lies
};

// A used stretch of the file, to find overlaps.
struct Stretch {
  std::uint64_t begin, end;
  std::string_view name;
};

class ZipReader {
 public:
  ZipReader(const MappedFile& file, const std::string& path) : file_(file), path_(path) {}

  std::vector<ZipEntry> read() {
    const Directory directory = find_directory();
    ByteReader reader = reader_at(directory.offset, directory.size);
    std::vector<ZipEntry> entries;
    for (std::uint64_t i = 0; i < directory.entries; ++i) {
      const CentralRecord record = read_central(reader);
      entries.push_back({record.name, read_local(record, directory.offset)});
    }
    check(reader.left() == 0, "a directory of ", directory.entries, " entries, got ", reader.left(),
          " bytes more");
    check_overlap();
    return entries;
  }

 private:
  template <class... Parts>
  void check(bool holds, const Parts&... expected) const {
    require(holds, kPickleCode, path_, ": zip: expected ", expected...);
  }
  ByteReader reader_at(std::uint64_t offset, std::uint64_t bytes) const {
    check(offset <= file_.size() && bytes <= file_.size() - offset, bytes, " bytes at ", offset,
          " in a file of ", file_.size());
    return ByteReader(file_.text(offset, bytes), path_);
  }
  bool has(std::uint64_t offset, std::string_view magic) const {
    return offset <= file_.size() && magic.size() <= file_.size() - offset &&
           file_.text(offset, magic.size()) == magic;
  }

  // The end record is the last thing but for a comment, whose length it tells.
  std::uint64_t find_end() const {
    check(file_.size() >= kEndBytes, "an archive, got ", file_.size(), " bytes");
    const std::uint64_t last = file_.size() - kEndBytes, first = last - std::min(last, kLongestComment);
    for (std::uint64_t at = last + 1; at-- > first;) {
      if (has(at, kEndMagic) && reader_at(at + kEndBytes - 2, 2).u16() == last - at) return at;
    }
    check(false, "an end record: the file is cut short, or no zip");
    return 0;
  }

  Directory find_directory() const {
    const std::uint64_t end = find_end();
    ByteReader reader = reader_at(end + kEndMagic.size(), kEndBytes - kEndMagic.size());
    const std::uint32_t disk = reader.u16(), first_disk = reader.u16(), here = reader.u16();
    Directory directory{reader.u16(), reader.u32(), reader.u32()};
    const bool one_part =
        disk == first_disk && (disk == 0 || disk == kSaturated16) && here == directory.entries;
    check(one_part, "an archive in one part");
    std::uint64_t limit = end;
    if (end >= kLocator64Bytes && has(end - kLocator64Bytes, kLocator64Magic))
      limit = widen(directory, end - kLocator64Bytes);
    check(directory.offset <= limit && directory.size <= limit - directory.offset, "a directory before byte ",
          limit, ", got ", directory.size, " bytes at ", directory.offset);
    check(directory.entries <= directory.size / kCentralBytes, "at most ", directory.size / kCentralBytes,
          " entries, got ", directory.entries);
    return directory;
  }

  // Takes the numbers of the zip64 end record; answers where that record lies.
  std::uint64_t widen(Directory& directory, std::uint64_t locator) const {
    ByteReader pointer =
        reader_at(locator + kLocator64Magic.size(), kLocator64Bytes - kLocator64Magic.size());
    const std::uint32_t disk = pointer.u32();
    const std::uint64_t at = pointer.u64();
    check(disk == 0 && pointer.u32() <= 1, "an archive in one part");
    check(locator >= kEnd64Bytes && at <= locator - kEnd64Bytes && has(at, kEnd64Magic),
          "a zip64 end record before byte ", locator, ", got ", at);
    ByteReader reader = reader_at(at + kEnd64Magic.size(), kEnd64Bytes - kEnd64Magic.size());
    reader.text(8 + 2 + 2);  // its own size, the versions
    check(reader.u32() == 0 && reader.u32() == 0, "an archive in one part");
    const std::uint64_t here = reader.u64();
    const Directory wide{reader.u64(), reader.u64(), reader.u64()};
    check(here == wide.entries, "an archive in one part");
    const auto agrees = [](std::uint64_t narrow, std::uint64_t saturated, std::uint64_t value) {
      return narrow == saturated || narrow == value;
    };
    check(agrees(directory.entries, kSaturated16, wide.entries) &&
              agrees(directory.size, kSaturated32, wide.size) &&
              agrees(directory.offset, kSaturated32, wide.offset),
          "two end records that agree");
    directory = wide;
    return at;
  }

  // The zip64 extra field holds, in this order, those of the given numbers that are saturated.
  void read_extra(std::string_view extra, std::initializer_list<std::uint64_t*> numbers) const {
    ByteReader reader(extra, path_);
    while (reader.left() >= 4) {
      const std::uint16_t id = reader.u16();
      ByteReader field(reader.text(reader.u16()), path_);
      if (id != kZip64Extra) continue;
      for (std::uint64_t* number : numbers) {
        if (*number == kSaturated32 && field.left() >= 8) *number = field.u64();
      }
      return;
    }
  }

  CentralRecord read_central(ByteReader& reader) const {
    check(reader.text(kCentralMagic.size()) == kCentralMagic, "a directory record before byte ", reader.at(),
          " of the directory");
    reader.text(2 + 2);  // versions
    const std::uint16_t flags = reader.u16(), method = reader.u16();
    reader.text(2 + 2 + 4);  // time, date, checksum
    std::uint64_t compressed = reader.u32(), size = reader.u32();
    const std::uint16_t name_bytes = reader.u16(), extra_bytes = reader.u16(), comment_bytes = reader.u16();
    const std::uint16_t disk = reader.u16();
    reader.text(2 + 4);  // attributes
    std::uint64_t header = reader.u32();
    const std::string_view name = reader.text(name_bytes);
    read_extra(reader.text(extra_bytes), {&size, &compressed, &header});
    reader.text(comment_bytes);
    check_plain(name, flags, method);
    check(disk == 0 || disk == kSaturated16, "an archive in one part");
    check(compressed == size, Shown{name}, " to be as long as its contents, got ", compressed, " and ", size,
          " bytes");
    return {name, size, header};
  }

  void check_plain(std::string_view name, std::uint16_t flags, std::uint16_t method) const {
    check((flags & kEncrypted) == 0, Shown{name}, " not to be encrypted");
    check(method == kStored, Shown{name}, " to be stored, as torch.save does, got compression method ",
          method);
  }

  std::string_view read_local(const CentralRecord& record, std::uint64_t limit) {
    const std::string_view name = record.name;
    check(record.header <= limit && kLocalBytes <= limit - record.header && has(record.header, kLocalMagic),
          "a local header of ", Shown{name}, " before byte ", limit, ", got ", record.header);
    const std::uint64_t after_magic = record.header + kLocalMagic.size();
    ByteReader reader = reader_at(after_magic, limit - after_magic);
    reader.text(2);  // version
    const std::uint16_t flags = reader.u16(), method = reader.u16();
    reader.text(2 + 2 + 4);  // time, date, checksum
    std::uint64_t compressed = reader.u32(), size = reader.u32();
    const std::uint16_t name_bytes = reader.u16(), extra_bytes = reader.u16();
    check(reader.text(name_bytes) == name, "one name in the local header and the directory of ", Shown{name});
    read_extra(reader.text(extra_bytes), {&size, &compressed});
    check_plain(name, flags, method);
    // A writer that did not know the sizes yet left zeros here and told them behind the data.
    const bool deferred = (flags & kSizesFollow) != 0 && size == 0 && compressed == 0;
    check(deferred || (size == record.size && compressed == record.size), Shown{name}, " of ", record.size,
          " bytes in its local header too, got ", size);
    const std::uint64_t begin = after_magic + reader.at();
    check(record.size <= reader.left(), Shown{name}, " to end before byte ", limit, ", got ", record.size,
          " bytes at ", begin);
    stretches_.push_back({record.header, begin + record.size, name});
    return file_.text(begin, record.size);
  }

  void check_overlap() {
    std::sort(stretches_.begin(), stretches_.end(),
              [](const Stretch& a, const Stretch& b) { return a.begin < b.begin; });
    for (std::size_t i = 1; i < stretches_.size(); ++i) {
      check(stretches_[i - 1].end <= stretches_[i].begin, "entries apart, got ",
            Shown{stretches_[i - 1].name}, " and ", Shown{stretches_[i].name}, " overlapping");
    }
  }

  const MappedFile& file_;
  const std::string& path_;
  std::vector<Stretch> stretches_;
};

}  // namespace

StoredZip::StoredZip(const MappedFile& file, const std::string& path)
    : entries_(ZipReader(file, path).read()) {
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    require(positions_.emplace(entries_[i].name, i).second, kPickleCode, path,
            ": zip: expected each entry once, got ", Shown{entries_[i].name}, " twice");
  }
}

const ZipEntry* StoredZip::find(std::string_view name) const {
  const auto found = positions_.find(name);
  return found == positions_.end() ? nullptr : &entries_[found->second];
}

}  // namespace danceflux::io
