#include "align/recorder.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <utility>

#include "backend/backend.h"
#include "core/error.h"
#include "core/json.h"
#include "io/atomic_file.h"
#include "io/format_dtype.h"

namespace danceflux::align {
namespace {

constexpr std::int64_t kPiece = 1 << 20;  // elements on the host at once
constexpr std::size_t kPrefix = 8, kAlignment = 8;

std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

const char* name_of(SightRole role) {
  constexpr const char* kNames[] = {"input", "output", "gradient"};
  return kNames[static_cast<std::size_t>(role)];
}

std::string head_of(const std::string& stage, const std::string& name, const std::string& block,
                    const char* op, const char* role, int index) {
  return "{\"stage\":" + json_quote(stage) + ",\"name\":" + json_quote(name) +
         ",\"block\":" + json_quote(block) + ",\"op\":" + json_quote(op) + ",\"role\":\"" + role +
         "\",\"index\":" + std::to_string(index);
}

std::string told(const Measure& measure, Summary summary) {
  char crc[16];
  std::snprintf(crc, sizeof crc, "%08x", measure.crc);
  std::string text = ",\"crc\":\"" + std::string(crc) + "\",\"count\":" + std::to_string(measure.count);
  if (summary == Summary::checksum) return text;
  const bool any = measure.count > measure.nan + measure.inf;
  const double finite = static_cast<double>(measure.count - measure.nan - measure.inf);
  text += ",\"nan\":" + std::to_string(measure.nan) + ",\"inf\":" + std::to_string(measure.inf) +
          ",\"min\":" + number(any ? measure.min : 0) + ",\"max\":" + number(any ? measure.max : 0) +
          ",\"mean\":" + number(any ? measure.sum / finite : 0) +
          ",\"l2\":" + number(std::sqrt(measure.squares)) + ",\"sketch\":[";
  for (std::size_t k = 0; k < kSketches; ++k) text += (k ? "," : "") + number(measure.sketch[k]);
  return text + "]";
}

struct Entry {
  const std::string& key;
  DType dtype;
  const Shape& shape;
};

std::string header_of(const std::vector<Entry>& entries) {
  std::string header = "{";
  std::uint64_t offset = 0;
  for (const Entry& entry : entries) {
    const std::uint64_t end = offset + static_cast<std::uint64_t>(entry.shape.numel()) * size_of(entry.dtype);
    header += (offset || header.size() > 1 ? "," : "") + json_quote(entry.key) + ":{\"dtype\":\"" +
              std::string(io::format_name(entry.dtype)) + "\",\"shape\":" + entry.shape.string() +
              ",\"data_offsets\":[" + std::to_string(offset) + "," + std::to_string(end) + "]}";
    offset = end;
  }
  header += "}";
  header.resize((header.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  return header;
}

void write_header(io::AtomicFile& file, const std::vector<Entry>& entries) {
  const std::string header = header_of(entries);
  std::byte prefix[kPrefix];
  for (std::size_t i = 0; i < kPrefix; ++i)
    prefix[i] = static_cast<std::byte>(header.size() >> (8 * i) & 0xff);
  file.write(prefix, kPrefix);
  file.write(header.data(), header.size());
}

}  // namespace

void for_each_piece(const Tensor& tensor,
                    const std::function<void(const std::byte* data, std::size_t elements)>& visit) {
  if (tensor.numel() == 0) return;
  const bool flat = tensor.is_contiguous();
  if (tensor.numel() > kPiece && flat && tensor.rank() != 1)
    return for_each_piece(tensor.view({tensor.numel()}), visit);
  if (tensor.numel() > kPiece) {
    int axis = 0;
    while (tensor.dim(axis) == 1) ++axis;
    const std::int64_t row = tensor.numel() / tensor.dim(axis),
                       rows = std::max<std::int64_t>(1, kPiece / row);
    for (std::int64_t start = 0; start < tensor.dim(axis); start += rows)
      for_each_piece(tensor.narrow(axis, start, std::min(rows, tensor.dim(axis) - start)), visit);
    return;
  }
  Backend& device = backend_of(tensor);
  Tensor packed = tensor;
  if (!flat) {
    packed = device.empty(tensor.shape(), tensor.dtype());
    device.copy(packed, tensor);
  }
  std::vector<std::byte> host(packed.bytes());
  device.download(host.data(), packed);
  visit(host.data(), static_cast<std::size_t>(packed.numel()));
}

Recorder::Recorder(RecorderOptions options) : Observer(options.level), options_(std::move(options)) {}

void Recorder::stage(std::string name, std::string inside) {
  stage_ = std::move(name);
  inside_ = std::move(inside);
  restart();
}

void Recorder::see(const Sight& sight) {
  write_line(head_of(inside_, sight.name, sight.block, sight.op, name_of(sight.role), sight.index),
             sight.tensor);
}

void Recorder::record(const std::string& name, const std::string& op, const char* role,
                      const Tensor& tensor) {
  write_line(head_of(stage_, name, "", op.c_str(), role, 0), tensor);
}

// A recording that fails must not take the job with it: it stops, and whoever asks for its lines is told.
void Recorder::write_line(const std::string& head, const Tensor& tensor) {
  if (stopped_) return;
  const auto started = std::chrono::steady_clock::now();
  try {
    Measure measure;
    std::string place;
    if (options_.summary == Summary::full) {
      place = keep(tensor, measure);
    } else {
      for_each_piece(tensor, [&](const std::byte* data, std::size_t elements) {
        measure.add(data, tensor.dtype(), elements, options_.summary != Summary::checksum);
      });
    }
    lines_.push_back(head + ",\"dtype\":\"" + std::string(danceflux::name_of(tensor.dtype())) +
                     "\",\"shape\":" + tensor.shape().string() + told(measure, options_.summary) + place +
                     "}");
    ++count_;
  } catch (...) {
    stopped_ = std::current_exception();
    waiting_.clear();
  }
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

std::string Recorder::file_name() {
  char name[40];
  std::snprintf(name, sizeof name, "tensors-%05d.safetensors", files_);
  return name;
}

std::string Recorder::keep(const Tensor& tensor, Measure& measure) {
  std::string key = std::to_string(count_);
  if (tensor.bytes() > options_.shard_bytes) {
    write_shard();
    const std::string name = file_name();
    io::AtomicFile file(options_.folder + "/" + name);
    write_header(file, {{key, tensor.dtype(), tensor.shape()}});
    for_each_piece(tensor, [&](const std::byte* data, std::size_t elements) {
      measure.add(data, tensor.dtype(), elements);
      file.write(data, elements * size_of(tensor.dtype()));
    });
    file.commit();
    ++files_;
    return ",\"file\":\"" + name + "\",\"key\":\"" + key + "\"";
  }
  if (waiting_bytes_ + tensor.bytes() > options_.shard_bytes) write_shard();
  Waiting entry{key, tensor.dtype(), tensor.shape(), {}};
  entry.data.reserve(tensor.bytes());
  for_each_piece(tensor, [&](const std::byte* data, std::size_t elements) {
    measure.add(data, tensor.dtype(), elements);
    entry.data.insert(entry.data.end(), data, data + elements * size_of(tensor.dtype()));
  });
  waiting_bytes_ += entry.data.size();
  waiting_.push_back(std::move(entry));
  return ",\"file\":\"" + file_name() + "\",\"key\":\"" + key + "\"";
}

void Recorder::write_shard() {
  if (waiting_.empty()) return;
  io::AtomicFile file(options_.folder + "/" + file_name());
  std::vector<Entry> entries;
  // Wide types first: the format allows no padding.
  std::stable_sort(waiting_.begin(), waiting_.end(),
                   [](const Waiting& a, const Waiting& b) { return size_of(a.dtype) > size_of(b.dtype); });
  for (const Waiting& entry : waiting_) entries.push_back({entry.key, entry.dtype, entry.shape});
  write_header(file, entries);
  for (const Waiting& entry : waiting_) file.write(entry.data.data(), entry.data.size());
  file.commit();
  waiting_.clear();
  waiting_bytes_ = 0;
  ++files_;
}

void Recorder::flush() {
  if (stopped_) return;
  try {
    write_shard();
  } catch (...) {
    stopped_ = std::current_exception();
    waiting_.clear();
  }
}

std::vector<std::string> Recorder::take() {
  if (stopped_ && !told_) {
    told_ = true;
    std::rethrow_exception(stopped_);
  }
  return std::exchange(lines_, {});
}

}  // namespace danceflux::align
