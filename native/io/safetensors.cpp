#include "io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <unordered_set>

#include "core/error.h"
#include "core/json.h"
#include "io/atomic_file.h"
#include "io/mapped_file.h"

namespace danceflux::io {
namespace {

constexpr const char* kCode = "ERR_SAFETENSORS";
constexpr std::uint64_t kMaxHeader = 100'000'000;  // the format's own limit
constexpr std::size_t kPrefix = 8, kAlignment = 8;

struct FormatDType {
  std::string_view name;
  std::size_t bits;
  std::optional<DType> dtype;  // none: known, but not read here
};
constexpr FormatDType kDTypes[] = {{"F64", 64, DType::f64},   {"F32", 32, DType::f32},     {"F16", 16, DType::f16},
                                   {"BF16", 16, DType::bf16}, {"I64", 64, DType::i64},     {"I32", 32, DType::i32},
                                   {"U8", 8, DType::u8},      {"I8", 8, std::nullopt},     {"BOOL", 8, std::nullopt},
                                   {"I16", 16, std::nullopt}, {"U16", 16, std::nullopt},   {"U32", 32, std::nullopt},
                                   {"U64", 64, std::nullopt}, {"F8_E4M3", 8, std::nullopt}, {"F8_E5M2", 8, std::nullopt},
                                   {"F8_E8M0", 8, std::nullopt}, {"C64", 64, std::nullopt}, {"F4", 4, std::nullopt}};

const FormatDType& format_dtype(const std::string& path, const std::string& tensor, const std::string& name) {
  const auto* found = std::find_if(std::begin(kDTypes), std::end(kDTypes), [&](const auto& row) { return row.name == name; });
  require(found != std::end(kDTypes), kCode, path, ": ", tensor, ": expected a known dtype, got \"", name, "\"");
  return *found;
}

std::uint64_t read_u64(const std::byte* from) {
  std::uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | std::to_integer<std::uint64_t>(from[i]);
  return value;
}

class SafetensorsFile final : public TensorFile {
 public:
  explicit SafetensorsFile(const std::string& path) : TensorFile(path), file_(path) { parse(); }
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
    require(length <= kMaxHeader && length <= file_.size() - kPrefix, kCode, path(), ": expected a header within ",
            file_.size() - kPrefix, " bytes, got a length of ", length);
    const Json header = Json::parse(file_.text(kPrefix, length), kCode, path());
    require(header.is(Json::Kind::object), kCode, path(), ": expected a JSON object as header");
    data_ = file_.data() + kPrefix + length;
    data_size_ = file_.size() - kPrefix - length;
    tensors_.reserve(header.members().size());
    std::vector<Range> ranges;
    for (const auto& [name, entry] : header.members()) {
      if (name == "__metadata__") read_metadata(entry);
      else ranges.push_back(read_entry(name, entry));
    }
    check_overlap(ranges);
  }

  void read_metadata(const Json& entry) {
    require(entry.is(Json::Kind::object), kCode, path(), ": expected __metadata__ to be an object of strings");
    for (const auto& [key, value] : entry.members()) {
      require(value.is(Json::Kind::string), kCode, path(), ": expected metadata \"", key, "\" to be a string");
      metadata_[key] = value.text();
    }
  }

  Shape read_shape(const std::string& name, const Json* json) const {
    require(json && json->is(Json::Kind::array) && json->items().size() <= kMaxRank, kCode, path(), ": ", name,
            ": expected a shape of at most ", kMaxRank, " dimensions");
    Shape shape;
    for (const Json& item : json->items()) {
      std::int64_t dim = -1;
      require(item.integer(dim) && dim >= 0, kCode, path(), ": ", name, ": expected dimensions of 0 or more, got ", item.text());
      shape.push_back(dim);
    }
    return shape;
  }

  Range read_range(const std::string& name, const Json* json) const {
    std::int64_t begin = -1, end = -1;
    const bool pair = json && json->is(Json::Kind::array) && json->items().size() == 2 && json->items()[0].integer(begin) &&
                      json->items()[1].integer(end);
    require(pair && begin >= 0 && begin <= end && static_cast<std::uint64_t>(end) <= data_size_, kCode, path(), ": ", name,
            ": expected data_offsets within ", data_size_, " bytes, got ", begin, " to ", end);
    return {static_cast<std::uint64_t>(begin), static_cast<std::uint64_t>(end), nullptr};
  }

  Range read_entry(const std::string& name, const Json& entry) {
    const Json* dtype = entry.find("dtype");
    require(dtype && dtype->is(Json::Kind::string), kCode, path(), ": ", name, ": expected a dtype");
    const FormatDType& format = format_dtype(path(), name, dtype->text());
    FileTensor tensor{name, dtype->text(), read_shape(name, entry.find("shape")), {}, nullptr};
    Range range = read_range(name, entry.find("data_offsets"));
    const std::uint64_t held = range.end - range.begin;
    const std::uint64_t elements = element_count(name, tensor.shape);
    require(elements <= held * 8 / format.bits && (elements * format.bits + 7) / 8 == held, kCode, path(), ": ", name,
            ": expected the bytes of ", tensor.shape, " ", format.name, ", got ", held);
    tensor.strides = contiguous_strides(tensor.shape);
    tensor.data = data_ + range.begin;
    tensor.readable = format.dtype.has_value();
    tensor.dtype = format.dtype.value_or(DType::u8);
    tensors_.push_back(std::move(tensor));
    range.name = &name;
    return range;
  }

  std::uint64_t element_count(const std::string& name, const Shape& shape) const {
    try {
      return static_cast<std::uint64_t>(shape.numel());
    } catch (const Error& error) {
      fail(kCode, path(), ": ", name, ": ", error.what());
    }
  }

  void check_overlap(std::vector<Range>& ranges) const {
    std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
      return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
    });
    for (std::size_t i = 1; i < ranges.size(); ++i) {
      require(ranges[i].begin >= ranges[i - 1].end, kCode, path(), ": ", *ranges[i].name, " and ", *ranges[i - 1].name,
              " overlap");
    }
  }

  MappedFile file_;
  const std::byte* data_ = nullptr;
  std::uint64_t data_size_ = 0;
  std::vector<FileTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

std::string_view format_name(DType dtype) {
  const auto* found = std::find_if(std::begin(kDTypes), std::end(kDTypes), [&](const auto& row) { return row.dtype == dtype; });
  return found->name;
}

std::string make_header(const std::vector<TensorToWrite>& tensors, const std::map<std::string, std::string>& metadata) {
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
    const std::uint64_t end = offset + static_cast<std::uint64_t>(tensor.shape.numel()) * size_of(tensor.dtype);
    header += separate() + json_quote(tensor.name) + ":{\"dtype\":\"" + std::string(format_name(tensor.dtype)) +
              "\",\"shape\":" + tensor.shape.string() + ",\"data_offsets\":[" + std::to_string(offset) + "," +
              std::to_string(end) + "]}";
    offset = end;
  }
  header += "}";
  header.resize((header.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  return header;
}

}  // namespace

std::shared_ptr<TensorFile> open_safetensors(const std::string& path) { return std::make_shared<SafetensorsFile>(path); }

void write_safetensors(const std::string& path, std::vector<TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata) {
  // Wide types first, so that every tensor lies on a multiple of its element size without padding (the format allows none).
  std::sort(tensors.begin(), tensors.end(), [](const TensorToWrite& a, const TensorToWrite& b) {
    const std::size_t wide_a = size_of(a.dtype), wide_b = size_of(b.dtype);
    return wide_a != wide_b ? wide_a > wide_b : a.name < b.name;
  });
  for (std::size_t i = 1; i < tensors.size(); ++i) {
    require(tensors[i].name != tensors[i - 1].name, "ERR_FILE", path, ": two tensors named ", tensors[i].name);
  }
  const std::string header = make_header(tensors, metadata);
  AtomicFile file(path);
  std::byte prefix[kPrefix];
  for (std::size_t i = 0; i < kPrefix; ++i) prefix[i] = static_cast<std::byte>(header.size() >> (8 * i) & 0xff);
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
