#include "backend/options.h"

#include <cmath>
#include <cstdlib>

#include "core/error.h"

namespace danceflux {

/// Recursive descent over one object; depth is bounded because the text comes from outside.
class DeviceOptionsReader {
 public:
  DeviceOptionsReader(std::string_view json, DeviceOptions& out) : text_(json), out_(out) {}

  void read() {
    object("", 0);
    skip_space();
    if (at_ != text_.size()) refuse("nothing after the object");
  }

 private:
  static constexpr int kMaxDepth = 8;

  [[noreturn]] void refuse(const char* expected) const {
    fail("ERR_OPTION", "device options: expected ", expected, " at character ", at_, ", got ",
         at_ < text_.size() ? std::string(text_.substr(at_, 12)) : std::string("the end"));
  }
  void skip_space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r'))
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

  void object(const std::string& prefix, int depth) {
    if (depth > kMaxDepth) refuse("at most 8 nested objects");
    if (!take('{')) refuse("an object");
    if (take('}')) return;
    do {
      const std::string name = prefix + string();
      if (!take(':')) refuse("':'");
      value(name, depth);
    } while (take(','));
    if (!take('}')) refuse("',' or '}'");
  }

  void value(const std::string& name, int depth) {
    skip_space();
    const char first = at_ < text_.size() ? text_[at_] : '\0';
    if (first == '{') return object(name + ".", depth + 1);
    if (first == '"') return store(name, string());
    if (take_word("true")) return store(name, true);
    if (take_word("false")) return store(name, false);
    if (take_word("null")) return;
    store(name, number());
  }

  template <class T>
  void store(const std::string& name, T value) {
    require(out_.values_.emplace(name, std::move(value)).second, "ERR_OPTION", "device options: ", name,
            " is given twice");
  }

  double number() {
    std::size_t end = at_;
    while (end < text_.size() &&
           std::string_view("+-0123456789.eE").find(text_[end]) != std::string_view::npos)
      ++end;
    const std::string digits(text_.substr(at_, end - at_));
    char* stop = nullptr;
    const double value = std::strtod(digits.c_str(), &stop);
    if (digits.empty() || *stop || !std::isfinite(value)) refuse("a number, string, boolean, null or object");
    at_ = end;
    return value;
  }

  std::string string() {
    if (!take('"')) refuse("a string");
    std::string result;
    while (at_ < text_.size() && text_[at_] != '"') {
      if (text_[at_] != '\\') {
        result += text_[at_++];
        continue;
      }
      ++at_;
      result += escaped();
    }
    if (!take('"')) refuse("'\"'");
    return result;
  }

  char escaped() {
    static constexpr std::string_view kLetters = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    const std::size_t which = at_ < text_.size() ? kLetters.find(text_[at_]) : std::string_view::npos;
    if (which == std::string_view::npos)
      refuse("an escape other than \\u");  // no option needs one: paths come as UTF-8
    ++at_;
    return kMeanings[which];
  }

  std::string_view text_;
  DeviceOptions& out_;
  std::size_t at_ = 0;
};

DeviceOptions DeviceOptions::parse(std::string_view json) {
  DeviceOptions options;
  DeviceOptionsReader(json, options).read();
  return options;
}

void DeviceOptions::allow_only(std::string_view backend,
                               std::initializer_list<std::string_view> known) const {
  for (const auto& [name, value] : values_) {
    bool found = false;
    std::string list;
    for (std::string_view candidate : known) {
      found = found || candidate == name;
      list += (list.empty() ? "" : ", ") + std::string(candidate);
    }
    require(found, "ERR_OPTION", backend, " options: expected one of ", list, ", got ", name);
  }
}

namespace {
const char* kind_of(const std::variant<double, bool, std::string>& value) {
  static constexpr const char* kKinds[] = {"a number", "a boolean", "a string"};
  return kKinds[value.index()];
}

template <class T, class Values>
T value_or(const Values& values, const std::string& name, T absent, const char* expected) {
  const auto found = values.find(name);
  if (found == values.end()) return absent;
  const T* value = std::get_if<T>(&found->second);
  require(value != nullptr, "ERR_OPTION", "option ", name, ": expected ", expected, ", got ",
          kind_of(found->second));
  return *value;
}
}  // namespace

std::string DeviceOptions::text(const std::string& name, std::string absent) const {
  return value_or<std::string>(values_, name, std::move(absent), "a string");
}
double DeviceOptions::number(const std::string& name, double absent) const {
  return value_or<double>(values_, name, absent, "a number");
}
bool DeviceOptions::flag(const std::string& name, bool absent) const {
  return value_or<bool>(values_, name, absent, "a boolean");
}
std::int64_t DeviceOptions::integer(const std::string& name, std::int64_t absent) const {
  const double value = number(name, static_cast<double>(absent));
  require(value == std::floor(value) && std::abs(value) < 9e15, "ERR_OPTION", "option ", name,
          ": expected a whole number, got ", value);
  return static_cast<std::int64_t>(value);
}

}  // namespace danceflux
