// A cursor over bytes of a PyTorch checkpoint that never reads past their end.
#pragma once
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>
#include <string_view>

#include "core/error.h"
#include "core/json.h"

namespace danceflux::io {

inline constexpr const char* kPickleCode = "ERR_PICKLE";

/// A name of the file in a message, made fit for one only when the message is.
struct Shown {
  std::string_view text;
  friend std::ostream& operator<<(std::ostream& out, const Shown& name) { return out << shown(name.text); }
};

/// Little-endian numbers and stretches of text, in order. Everything throws ERR_PICKLE as "<what>: expected
/// ... at byte N".
class ByteReader {
 public:
  /// `what` names the bytes in messages and must outlive the reader.
  ByteReader(std::string_view bytes, const std::string& what) : bytes_(bytes), what_(&what) {}

  std::size_t at() const { return at_; }
  std::size_t left() const { return bytes_.size() - at_; }
  const std::string& what() const { return *what_; }

  std::uint8_t u8() { return static_cast<std::uint8_t>(number(1)); }
  std::uint16_t u16() { return static_cast<std::uint16_t>(number(2)); }
  std::uint32_t u32() { return static_cast<std::uint32_t>(number(4)); }
  std::uint64_t u64() { return number(8); }

  std::string_view text(std::uint64_t length) {
    require(length <= left(), kPickleCode, *what_, ": expected ", length, " more bytes at byte ", at_,
            ", got ", left());
    const std::string_view taken = bytes_.substr(at_, static_cast<std::size_t>(length));
    at_ += taken.size();
    return taken;
  }
  /// Up to the next line feed, which is skipped.
  std::string_view line() {
    const std::size_t end = bytes_.find('\n', at_);
    require(end != std::string_view::npos, kPickleCode, *what_, ": expected a line that ends, at byte ", at_);
    const std::string_view taken = text(end - at_);
    ++at_;
    return taken;
  }

 private:
  std::uint64_t number(std::size_t bytes) {
    const std::string_view raw = text(bytes);
    std::uint64_t value = 0;
    for (std::size_t i = bytes; i-- > 0;) value = value << 8 | static_cast<unsigned char>(raw[i]);
    return value;
  }

  std::string_view bytes_;
  const std::string* what_;
  std::size_t at_ = 0;
};

}  // namespace danceflux::io
