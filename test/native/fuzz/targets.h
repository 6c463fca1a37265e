// What is asked of every reader of bytes from outside: to read them, or to refuse them with an Error of one
// line; never to crash, to hang or to contradict itself. The libFuzzer programs of this folder and
// fuzz_test.cpp both run these.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "../zip_tools.h"
#include "backend/options.h"
#include "core/error.h"
#include "core/json.h"
#include "io/tensor_file.h"

namespace danceflux::fuzz {

inline void demand(bool holds, const std::string& what) {
  if (!holds) throw std::logic_error("fuzz: " + what);
}

/// Bytes under a path, without a disk.
class MemoryFile {
 public:
  explicit MemoryFile(std::string_view bytes) : file_(::memfd_create("danceflux-fuzz", MFD_CLOEXEC)) {
    demand(file_ >= 0, "no memory file");
    while (!bytes.empty()) {
      const ssize_t written = ::write(file_, bytes.data(), bytes.size());
      demand(written > 0, "memory file cannot be written");
      bytes.remove_prefix(static_cast<std::size_t>(written));
    }
  }
  ~MemoryFile() { ::close(file_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(file_); }

 private:
  int file_;
};

/// Runs `body`; an Error must have a code and one visible line. Anything else that is thrown is a finding.
template <class Body>
bool accepted(Body body) {
  try {
    body();
    return true;
  } catch (const Error& error) {
    const std::string_view message = error.what();
    demand(error.code.starts_with("ERR_") && !message.empty(), "an error without code or message");
    for (const char letter : message)
      demand(static_cast<unsigned char>(letter) >= 0x20 && letter != 0x7f,
             "an unseen character in a message");
    demand(is_utf8(message), "a message that is not UTF-8");
    return false;
  }
}

/// Reads a tensor whole, in parts and across; whatever was let in must be readable.
inline void read_tensor(const io::FileTensor& tensor) {
  constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 21;
  std::vector<std::byte> whole, part;
  if (!tensor.readable) {
    demand(!accepted([&] { io::read_rows(tensor, 0, -1, false, DType::f32, nullptr); }),
           "an unreadable type was read");
    return;
  }
  const std::size_t size = size_of(tensor.dtype);
  const auto elements = static_cast<std::uint64_t>(tensor.shape.numel());
  if (elements > kMostBytes / size) return;
  whole.resize(elements * size);
  io::read_rows(tensor, 0, -1, false, tensor.dtype, whole.data());
  if (tensor.shape.rank() == 2) {
    part.resize(whole.size());
    io::read_rows(tensor, 0, -1, true, tensor.dtype, part.data());
  }
  if (tensor.shape.rank() == 0 || elements == 0) return;
  const std::int64_t last = tensor.shape[0] - 1;
  part.resize(whole.size() / static_cast<std::size_t>(tensor.shape[0]));
  io::read_rows(tensor, last, 1, false, tensor.dtype, part.data());
  demand(std::memcmp(part.data(), whole.data() + whole.size() - part.size(), part.size()) == 0,
         "a row unlike the whole");
}

inline void read_file(std::string_view bytes) {
  const MemoryFile memory(bytes);
  accepted([&] {
    const auto file = io::open_tensor_file(memory.path());
    std::size_t read = 0;
    for (const io::FileTensor& tensor : file->tensors()) {
      demand(is_utf8(tensor.name), "a name that is not UTF-8");
      if (++read > 64) break;
      demand(&file->find(tensor.name) == &tensor, "a tensor that its name does not find");
      read_tensor(tensor);
    }
    demand(!accepted([&] { (void)file->find("\n not there"); }), "a tensor that is not there was found");
  });
}

/// The bytes as a file, and as the header of one.
inline void safetensors(std::string_view bytes) {
  read_file(bytes);
  const std::string header(bytes);
  for (const std::size_t data_bytes : {0, 16})
    read_file(test::little(header.size(), 8) + header + std::string(data_bytes, '\1'));
}

inline void torch_zip(std::string_view bytes) { read_file(bytes); }

/// The bytes as the pickle of a checkpoint.
inline void pickle(std::string_view bytes) { read_file(test::checkpoint(std::string(bytes))); }

inline std::string written(const Json& value) {
  std::string text;
  switch (value.kind()) {
    case Json::Kind::null:
      return "null";
    case Json::Kind::boolean:
      return value.boolean() ? "true" : "false";
    case Json::Kind::number:
      return value.text();
    case Json::Kind::string:
      return json_quote(value.text());
    case Json::Kind::array:
      for (const Json& item : value.items()) text += (text.empty() ? "" : ",") + written(item);
      return "[" + text + "]";
    default:
      for (const auto& [name, member] : value.members())
        text += (text.empty() ? "" : ",") + json_quote(name) + ":" + written(member);
      return "{" + text + "}";
  }
}

/// What is read, written and read again is the same.
inline void json(std::string_view bytes) {
  const std::string line = shown(bytes);
  demand(is_utf8(line) && line.find('\n') == std::string::npos && line.size() < 512,
         "text shown on more than a line");
  accepted([&] {
    const std::string once = written(Json::parse(bytes, "ERR_FUZZ", "fuzz"));
    demand(written(Json::parse(once, "ERR_FUZZ", "fuzz")) == once, "JSON that changes when written");
  });
}

inline void options(std::string_view bytes) {
  accepted([&] {
    const DeviceOptions read = DeviceOptions::parse(bytes);
    for (const char* name : {"threads", "isa", "a.b", ""}) {
      accepted([&] { (void)read.integer(name, 1); });
      accepted([&] { (void)read.number(name, 1); });
      accepted([&] { (void)read.flag(name, true); });
      accepted([&] { (void)read.text(name, "x"); });
    }
    read.allow_only("fuzz", {"threads", "isa", "a.b"});
  });
}

}  // namespace danceflux::fuzz
