// A small JSON reader for headers and options that come from outside: strict, bounded, no surprises.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace danceflux {

/// A parsed value. Members keep their order; a name given twice is an error.
class Json {
 public:
  enum class Kind : std::uint8_t { null, boolean, number, string, array, object };

  /// Parses exactly one value. Throws Error(code) as "<what>: expected ... at byte N". Depth is bounded
  /// by 32.
  static Json parse(std::string_view text, const char* code, std::string_view what);

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  bool boolean() const { return boolean_; }
  /// The text of a string, or the digits of a number as written.
  const std::string& text() const { return text_; }
  double number() const;
  /// Does the number fit, written without fraction or exponent?
  bool integer(std::int64_t& value) const;
  const std::vector<Json>& items() const { return items_; }
  const std::vector<std::pair<std::string, Json>>& members() const { return members_; }
  /// Null when there is no such member.
  const Json* find(std::string_view name) const;

 private:
  friend class JsonReader;
  Kind kind_ = Kind::null;
  bool boolean_ = false;
  std::string text_;
  std::vector<Json> items_;
  std::vector<std::pair<std::string, Json>> members_;
};

/// `text` as a JSON string, quotes included.
std::string json_quote(std::string_view text);
/// Well-formed UTF-8: no overlong forms, no surrogates, nothing past U+10FFFF.
bool is_utf8(std::string_view text);
/// `text` from outside, fit for a message of one line: control characters and bytes that are not UTF-8
/// escaped, cut after 100 bytes, quoted when it would not be seen otherwise.
std::string shown(std::string_view text);

}  // namespace danceflux
