// Makes zips and pickles in which any field can lie.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace danceflux::test {

/// `value` in `bytes` bytes, little-endian.
inline std::string little(std::uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i, value = value >> 8) text += static_cast<char>(value & 0xff);
  return text;
}

/// An entry as both headers tell it; what differs from the truth makes the archive lie.
struct StoredEntry {
  std::string name, data;
  std::uint16_t flags = 0, method = 0;
  std::string local_name = name;
  std::uint64_t central_size = data.size(), local_size = data.size();
  std::int64_t shift = 0;  // added to the place of the local header
};

struct ZipEnd {
  std::uint64_t entries, size, offset;
  std::string comment{};
};

/// An archive of stored entries without checksums. `edit` may change what the end record says.
inline std::string stored_zip(const std::vector<StoredEntry>& entries,
                              const std::function<void(ZipEnd&)>& edit = {}) {
  std::string body, directory;
  for (const StoredEntry& entry : entries) {
    const std::string common = little(entry.flags, 2) + little(entry.method, 2) + little(0, 8);
    directory += "PK\x01\x02" + little(20, 2) + little(20, 2) + common + little(entry.central_size, 4) +
                 little(entry.central_size, 4) + little(entry.name.size(), 2) + little(0, 12) +
                 little(body.size() + static_cast<std::uint64_t>(entry.shift), 4) + entry.name;
    body += "PK\x03\x04" + little(20, 2) + common + little(entry.local_size, 4) +
            little(entry.local_size, 4) + little(entry.local_name.size(), 2) + little(0, 2) +
            entry.local_name + entry.data;
  }
  ZipEnd end{entries.size(), directory.size(), body.size()};
  if (edit) edit(end);
  return body + directory + "PK\x05\x06" + little(0, 4) + little(end.entries, 2) + little(end.entries, 2) +
         little(end.size, 4) + little(end.offset, 4) + little(end.comment.size(), 2) + end.comment;
}

/// A checkpoint around a pickle: one storage "0" of 16 bytes, the floats 1, 2, 3, 4.
inline std::string checkpoint(const std::string& pickle) {
  const std::string floats =
      little(0x3f800000, 4) + little(0x40000000, 4) + little(0x40400000, 4) + little(0x40800000, 4);
  return stored_zip({{"a/data.pkl", pickle}, {"a/byteorder", "little"}, {"a/data/0", floats}});
}

// ---- opcodes

inline std::string text_op(std::string_view text) { return "X" + little(text.size(), 4) + std::string(text); }
inline std::string number_op(std::int64_t value) {
  return "\x8a\x08" + little(static_cast<std::uint64_t>(value), 8);
}
inline std::string numbers_op(const std::vector<std::int64_t>& values) {
  std::string text = "(";
  for (const std::int64_t value : values) text += number_op(value);
  return text + "t";
}
inline std::string dictionary_op(std::string_view members) { return "}(" + std::string(members) + "u"; }

/// A tensor over the storage of checkpoint().
inline std::string tensor_op(const std::vector<std::int64_t>& shape = {4},
                             const std::vector<std::int64_t>& strides = {1}, std::int64_t offset = 0,
                             std::string_view storage = "FloatStorage", std::int64_t elements = 4) {
  return "ctorch._utils\n_rebuild_tensor_v2\n((" + text_op("storage") + "ctorch\n" + std::string(storage) +
         "\n" + text_op("0") + text_op("cpu") + number_op(elements) + "tQ" + number_op(offset) +
         numbers_op(shape) + numbers_op(strides) +
         "\x89"
         "ccollections\nOrderedDict\n)RtR";
}
inline std::string pickle_of(std::string_view value) { return "\x80\x02" + std::string(value) + "."; }

/// {"w": the four floats}
inline std::string good_pickle() { return pickle_of(dictionary_op(text_op("w") + tensor_op())); }

}  // namespace danceflux::test
