#include "io/safetensors.h"

#include <algorithm>
#include <unordered_set>

#include "core/error.h"
#include "core/json.h"
#include "io/atomic_file.h"
#include "io/byte_reader.h"
#include "io/format_dtype.h"
#include "io/mapped_file.h"

namespace danceflux::io {
namespace {

constexpr const char* kCode = "ERR_SAFETENSORS";
constexpr std::uint64_t kMaxHeader = 100'000'000;  // the format's own limit
constexpr std::size_t kPrefix = 8, kAlignment = 8;
constexpr std::string_view kMetadata = "__metadata__";

std::uint64_t read_u64(const std::byte* from) {
  std::uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | std::to_integer<std::uint64_t>(from[i]);
  return value;
}

// A scalar of the header as it stands there, for messages.
struct Quoted {
  const Json& json;
  friend std::ostream& operator<<(std::ostream& out, const Quoted& quoted) {
    const bool scalar = quoted.json.is(Json::Kind::string) || quoted.json.is(Json::Kind::number);
    return out << (scalar ? shown(quoted.json.text()) : "something else");
  }
};

class SafetensorsFile final : public TensorFile {
 public:
  explicit SafetensorsFile(const std::string& path) : TensorFile(path) { parse(); }
  const std::vector<FileTensor>& tensors() const override { return tensors_; }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }

 private:
  struct Range {
    std::uint64_t begin, end;
    const std::string* name;
  };

  void parse() {
    require(file_.size() >= kPrefix, kCode, path(), ": expected at least 8 bytes, got ", file_.size());
    const std::uint64_t length = read_u64(file_.data());
    require(length <= kMaxHeader && length <= file_.size() - kPrefix, kCode, path(),
            ": expected a header within ", file_.size() - kPrefix, " bytes, got a length of ", length);
    const Json header = Json::parse(file_.text(kPrefix, length), kCode, path());
    require(header.is(Json::Kind::object), kCode, path(), ": expected a JSON object as header");
    data_ = file_.data() + kPrefix + length;
    data_size_ = file_.size() - kPrefix - length;
    tensors_.reserve(header.members().size());
    std::vector<Range> ranges;
    for (const auto& [name, entry] : header.members()) {
      if (name == kMetadata)
        read_metadata(entry);
      else
        ranges.push_back(read_entry(name, entry));
    }
    check_cover(ranges);
  }

  template <class... Parts>
  void check(bool holds, const std::string& name, const Parts&... parts) const {
    if (!holds) fail(kCode, path(), ": ", shown(name), ": ", parts...);
  }

  void read_metadata(const Json& entry) {
    require(entry.is(Json::Kind::object), kCode, path(),
            ": expected __metadata__ to be an object of strings");
    for (const auto& [key, value] : entry.members()) {
      require(value.is(Json::Kind::string), kCode, path(), ": expected metadata ", shown(key),
              " to be a string");
      metadata_[key] = value.text();
    }
  }

  Shape read_shape(const std::string& name, const Json* json) const {
    check(json && json->is(Json::Kind::array) && json->items().size() <= kMaxRank, name,
          "expected a shape of at most ", kMaxRank, " dimensions");
    Shape shape;
    for (const Json& item : json->items()) {
      std::int64_t dim = -1;
      check(item.integer(dim) && dim >= 0, name, "expected dimensions of 0 or more, got ", Quoted{item});
      shape.push_back(dim);
    }
    return shape;
  }

  Range read_range(const std::string& name, const Json* json) const {
    std::int64_t begin = -1, end = -1;
    check(json && json->is(Json::Kind::array) && json->items().size() == 2, name,
          "expected two data_offsets");
    const Json &first = json->items()[0], &last = json->items()[1];
    const bool inside = first.integer(begin) && last.integer(end) && begin >= 0 && begin <= end &&
                        static_cast<std::uint64_t>(end) <= data_size_;
    check(inside, name, "expected data_offsets within ", data_size_, " bytes, got ", Quoted{first}, " to ",
          Quoted{last});
    return {static_cast<std::uint64_t>(begin), static_cast<std::uint64_t>(end), nullptr};
  }

  Range read_entry(const std::string& name, const Json& entry) {
    const Json* dtype = entry.find("dtype");
    check(dtype && dtype->is(Json::Kind::string), name, "expected a dtype");
    const FormatDType* format = find_format_dtype(dtype->text());
    check(format != nullptr, name, "expected a known dtype, got ", Quoted{*dtype});
    FileTensor tensor{name, dtype->text(), read_shape(name, entry.find("shape")), {}, nullptr};
    Range range = read_range(name, entry.find("data_offsets"));
    const std::uint64_t held = range.end - range.begin;
    const auto elements = bounded_elements(tensor.shape);
    check(elements.has_value(), name, "expected a shape with a product below 2^62, got ", tensor.shape);
    check(*elements <= held * 8 / format->bits && (*elements * format->bits + 7) / 8 == held, name,
          "expected the bytes of ", tensor.shape, " ", format->name, ", got ", held);
    tensor.strides = contiguous_strides(tensor.shape);
    tensor.data = data_ + range.begin;
    tensor.readable = format->dtype.has_value();
    tensor.dtype = format->dtype.value_or(DType::u8);
    tensors_.push_back(std::move(tensor));
    range.name = &name;
    return range;
  }

  // The format wants every byte of the buffer in one tensor: no overlap, no hole, nothing behind.
  void check_cover(std::vector<Range>& ranges) const {
    std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
      return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
    });
    std::uint64_t covered = 0;
    const std::string* previous = nullptr;
    for (const Range& range : ranges) {
      check(range.begin >= covered, *range.name, "expected data of its own, got an overlap with ",
            Shown{previous ? *previous : ""});
      check(range.begin == covered, *range.name, "expected data from byte ", covered, ", got ", range.begin);
      covered = range.end;
      previous = range.name;
    }
    require(covered == data_size_, kCode, path(), ": expected ", covered, " bytes of data, got ", data_size_);
  }

  const std::byte* data_ = nullptr;
  std::uint64_t data_size_ = 0;
  std::vector<FileTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

std::string make_header(const std::vector<TensorToWrite>& tensors,
                        const std::map<std::string, std::string>& metadata) {
  std::string header = "{";
  const auto separate = [&] { return header.size() > 1 ? "," : ""; };
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    bool first = true;
    for (const auto& [key, value] : metadata) {
      header += (first ? "" : ",") + json_quote(key) + ":" + json_quote(value);
      first = false;
    }
    header += "}";
  }
  std::uint64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    const std::uint64_t end =
        offset + static_cast<std::uint64_t>(tensor.shape.numel()) * size_of(tensor.dtype);
    header += separate() + json_quote(tensor.name) + ":{\"dtype\":\"" +
              std::string(format_name(tensor.dtype)) + "\",\"shape\":" + tensor.shape.string() +
              ",\"data_offsets\":[" + std::to_string(offset) + "," + std::to_string(end) + "]}";
    offset = end;
  }
  header += "}";
  header.resize((header.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  return header;
}

}  // namespace

std::shared_ptr<TensorFile> open_safetensors(const std::string& path) {
  return std::make_shared<SafetensorsFile>(path);
}

namespace {

// What could be written but not read again.
void check_names(const std::string& path, const std::vector<TensorToWrite>& tensors,
                 const std::map<std::string, std::string>& metadata) {
  std::unordered_set<std::string_view> seen;
  for (const TensorToWrite& tensor : tensors) {
    require(tensor.name != kMetadata && is_utf8(tensor.name), "ERR_FILE", path,
            ": expected a tensor's name, got ", shown(tensor.name));
    require(seen.insert(tensor.name).second, "ERR_FILE", path, ": expected each name once, got ",
            shown(tensor.name), " again");
  }
  for (const auto& [key, value] : metadata) {
    require(is_utf8(key) && is_utf8(value), "ERR_FILE", path, ": expected metadata in UTF-8, got ",
            shown(key), ": ", shown(value));
  }
}

}  // namespace

void write_safetensors(const std::string& path, std::vector<TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata) {
  check_names(path, tensors, metadata);
  // Wide types first, so that every tensor lies on a multiple of its element size without padding (the format
  // allows none).
  std::sort(tensors.begin(), tensors.end(), [](const TensorToWrite& a, const TensorToWrite& b) {
    const std::size_t wide_a = size_of(a.dtype), wide_b = size_of(b.dtype);
    return wide_a != wide_b ? wide_a > wide_b : a.name < b.name;
  });
  const std::string header = make_header(tensors, metadata);
  require(header.size() <= kMaxHeader, "ERR_FILE", path, ": expected a header of at most ", kMaxHeader,
          " bytes, got ", header.size());
  AtomicFile file(path);
  std::byte prefix[kPrefix];
  for (std::size_t i = 0; i < kPrefix; ++i)
    prefix[i] = static_cast<std::byte>(header.size() >> (8 * i) & 0xff);
  file.write(prefix, kPrefix);
  file.write(header.data(), header.size());
  std::vector<std::byte> buffer;
  for (const TensorToWrite& tensor : tensors) {
    buffer.resize(static_cast<std::size_t>(tensor.shape.numel()) * size_of(tensor.dtype));
    tensor.fill(buffer.data());
    file.write(buffer.data(), buffer.size());
  }
  file.commit();
}

}  // namespace danceflux::io
