#include "core/json.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <unordered_set>

#include "core/error.h"

namespace danceflux {
namespace {

// Bytes of the UTF-8 character that `text` starts with, by table 3-7 of the Unicode standard; 0 when it
// starts with none.
std::size_t utf8_length(std::string_view text) {
  struct Row {
    unsigned char first, last, second_first, second_last;
    std::size_t length;
  };
  static constexpr Row kRows[] = {
      {0x00, 0x7f, 0, 0, 1},       {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
      {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
      {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4}};
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto* row = std::find_if(std::begin(kRows), std::end(kRows),
                                 [&](const Row& one) { return byte(0) >= one.first && byte(0) <= one.last; });
  if (row == std::end(kRows) || text.size() < row->length) return 0;
  if (row->length > 1 && (byte(1) < row->second_first || byte(1) > row->second_last)) return 0;
  for (std::size_t i = 2; i < row->length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  return row->length;
}

// Bytes of `text` up to the first that is not UTF-8.
std::size_t utf8_prefix(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t length = utf8_length(text.substr(at));
    if (length == 0) return at;
    at += length;
  }
  return at;
}

}  // namespace

class JsonReader {
 public:
  JsonReader(std::string_view text, const char* code, std::string_view what)
      : text_(text), code_(code), what_(what) {}

  Json read() {
    at_ = utf8_prefix(text_);
    if (at_ != text_.size()) refuse("UTF-8");
    at_ = 0;
    Json value = read_value(0);
    skip_space();
    if (at_ != text_.size()) refuse("nothing more");
    return value;
  }

 private:
  static constexpr int kMaxDepth = 32;
  static constexpr std::size_t kMaxValues = std::size_t{1}
                                            << 22;  // a value takes some hundred bytes, its text only two

  [[noreturn]] void refuse(std::string_view expected) const {
    fail(code_, what_, ": expected ", expected, " at byte ", at_, at_ < text_.size() ? "" : ", got the end");
  }
  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos)
      ++at_;
  }
  bool take(char wanted) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }
  bool take_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json read_value(int depth) {
    if (depth > kMaxDepth) refuse("at most 32 nested values");
    if (++values_ > kMaxValues) refuse("at most 4194304 values");
    skip_space();
    Json value;
    const char first = at_ < text_.size() ? text_[at_] : '\0';
    if (first == '{') {
      value.kind_ = Json::Kind::object;
      read_members(value, depth);
    } else if (first == '[') {
      value.kind_ = Json::Kind::array;
      read_items(value, depth);
    } else if (first == '"') {
      value.kind_ = Json::Kind::string;
      value.text_ = read_string();
    } else if (take_word("true") || take_word("false")) {
      value.kind_ = Json::Kind::boolean;
      value.boolean_ = first == 't';
    } else if (!take_word("null")) {
      value.kind_ = Json::Kind::number;
      value.text_ = read_number();
    }
    return value;
  }

  void read_members(Json& object, int depth) {
    take('{');
    if (take('}')) return;
    std::unordered_set<std::string> seen;
    do {
      skip_space();
      std::string name = read_string();
      if (!seen.insert(name).second) refuse("each name once, got " + shown(name) + " again");
      if (!take(':')) refuse("':'");
      Json value = read_value(depth + 1);
      object.members_.emplace_back(std::move(name), std::move(value));
    } while (take(','));
    if (!take('}')) refuse("',' or '}'");
  }

  void read_items(Json& array, int depth) {
    take('[');
    if (take(']')) return;
    do {
      array.items_.push_back(read_value(depth + 1));
    } while (take(','));
    if (!take(']')) refuse("',' or ']'");
  }

  bool digit() const { return at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; }
  void take_digits() {
    if (!digit()) refuse("a value");
    while (digit()) ++at_;
  }

  std::string read_number() {
    const std::size_t start = at_;
    if (at_ < text_.size() && text_[at_] == '-') ++at_;
    if (digit() && text_[at_] == '0')
      ++at_;
    else
      take_digits();
    if (at_ < text_.size() && text_[at_] == '.') ++at_, take_digits();
    if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
      ++at_;
      if (at_ < text_.size() && (text_[at_] == '+' || text_[at_] == '-')) ++at_;
      take_digits();
    }
    return std::string(text_.substr(start, at_ - start));
  }

  std::string read_string() {
    if (at_ >= text_.size() || text_[at_] != '"') refuse("a string");
    ++at_;
    std::string result;
    while (at_ < text_.size() && text_[at_] != '"') {
      const char letter = text_[at_];
      if (static_cast<unsigned char>(letter) < 0x20) refuse("no control characters in a string");
      if (letter == '\\')
        read_escape(result);
      else
        result += letter, ++at_;
    }
    if (at_ >= text_.size()) refuse("'\"'");
    ++at_;
    return result;
  }

  void read_escape(std::string& result) {
    static constexpr std::string_view kLetters = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    ++at_;
    const char letter = at_ < text_.size() ? text_[at_] : '\0';
    if (letter == 'u') return append_utf8(result, read_code_point());
    const std::size_t which = kLetters.find(letter);
    if (letter == '\0' || which == std::string_view::npos) refuse("an escape sequence");
    result += kMeanings[which];
    ++at_;
  }

  std::uint32_t read_hex4() {
    ++at_;  // the letter u
    std::uint32_t value = 0;
    const char* first = text_.data() + std::min(at_, text_.size());
    const char* last = text_.data() + std::min(at_ + 4, text_.size());
    const auto parsed = std::from_chars(first, last, value, 16);
    if (last - first != 4 || parsed.ptr != last || parsed.ec != std::errc())
      refuse("four hexadecimal digits");
    at_ += 4;
    return value;
  }

  std::uint32_t read_code_point() {
    const std::uint32_t high = read_hex4();
    if (high < 0xd800 || high > 0xdfff) return high;
    if (high > 0xdbff || text_.substr(std::min(at_, text_.size()), 2) != "\\u")
      refuse("a pair of surrogates");
    ++at_;
    const std::uint32_t low = read_hex4();
    if (low < 0xdc00 || low > 0xdfff) refuse("a pair of surrogates");
    return 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
  }

  static void append_utf8(std::string& out, std::uint32_t code) {
    const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((code >> shift) & 0x3f)); };
    if (code < 0x80) {
      out += static_cast<char>(code);
    } else if (code < 0x800) {
      out += static_cast<char>(0xc0 | (code >> 6));
      tail(0);
    } else if (code < 0x10000) {
      out += static_cast<char>(0xe0 | (code >> 12));
      tail(6), tail(0);
    } else {
      out += static_cast<char>(0xf0 | (code >> 18));
      tail(12), tail(6), tail(0);
    }
  }

  std::string_view text_;
  const char* code_;
  std::string_view what_;
  std::size_t at_ = 0, values_ = 0;
};

Json Json::parse(std::string_view text, const char* code, std::string_view what) {
  return JsonReader(text, code, what).read();
}

double Json::number() const {
  double value = 0;
  if (kind_ != Kind::number) return value;
  // Not strtod alone: it would look for the decimal point of the process's locale.
  const auto parsed = std::from_chars(text_.data(), text_.data() + text_.size(), value);
  return parsed.ec == std::errc() ? value
                                  : std::strtod(text_.c_str(), nullptr);  // too large or small: infinity or 0
}

bool Json::integer(std::int64_t& value) const {
  if (kind_ != Kind::number) return false;
  const char* end = text_.data() + text_.size();
  const auto parsed = std::from_chars(text_.data(), end, value);
  return parsed.ec == std::errc() && parsed.ptr == end;
}

const Json* Json::find(std::string_view name) const {
  for (const auto& [key, value] : members_) {
    if (key == name) return &value;
  }
  return nullptr;
}

std::string json_quote(std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char letter : text) {
    const auto byte = static_cast<unsigned char>(letter);
    if (letter == '"' || letter == '\\')
      out += '\\', out += letter;
    else if (byte < 0x20)
      out += "\\u00", out += kHex[byte >> 4], out += kHex[byte & 15];
    else
      out += letter;
  }
  return out + '"';
}

bool is_utf8(std::string_view text) { return utf8_prefix(text) == text.size(); }

std::string shown(std::string_view text) {
  static constexpr std::size_t kLongest = 100;
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  std::size_t at = 0;
  while (at < text.size() && at < kLongest) {
    const std::size_t length = utf8_length(text.substr(at));
    const auto byte = static_cast<unsigned char>(text[at]);
    const bool visible = length > 1 || (length == 1 && byte >= 0x20 && byte != 0x7f);
    if (visible)
      out += text.substr(at, length);
    else
      out += "\\x", out += kHex[byte >> 4], out += kHex[byte & 15];
    at += visible ? length : 1;
  }
  if (at < text.size()) out += "...";
  const bool bare = !text.empty() && text.find(' ') == std::string_view::npos;
  return bare ? out : '"' + out + '"';
}

}  // namespace danceflux
