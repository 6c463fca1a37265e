#include "backend/options.h"

#include <cmath>

#include "core/error.h"
#include "core/json.h"

namespace danceflux {

void DeviceOptions::flatten(const std::string& prefix, const Json& object) {
  for (const auto& [member, value] : object.members()) {
    const std::string name = prefix + member;
    require(!values_.contains(name), "ERR_OPTION", "option ", shown(name),
            ": expected it once, got it twice");
    switch (value.kind()) {
      case Json::Kind::null:
        break;
      case Json::Kind::boolean:
        values_.emplace(name, value.boolean());
        break;
      case Json::Kind::number:
        require(std::isfinite(value.number()), "ERR_OPTION", "option ", shown(name),
                ": expected a finite number, got ", shown(value.text()));
        values_.emplace(name, value.number());
        break;
      case Json::Kind::string:
        values_.emplace(name, value.text());
        break;
      case Json::Kind::object:
        flatten(name + ".", value);
        break;
      case Json::Kind::array:
        fail("ERR_OPTION", "option ", shown(name), ": expected no list, got one");
    }
  }
}

DeviceOptions DeviceOptions::parse(std::string_view json) {
  const Json value = Json::parse(json, "ERR_OPTION", "device options");
  require(value.is(Json::Kind::object), "ERR_OPTION", "device options: expected an object, got ",
          shown(json.substr(0, 40)));
  DeviceOptions options;
  options.flatten("", value);
  return options;
}

void DeviceOptions::allow_only(std::string_view backend,
                               std::initializer_list<std::string_view> known) const {
  for (const auto& [name, value] : values_) {
    bool found = false;
    std::string list;
    for (std::string_view candidate : known) {
      const bool family = candidate.ends_with(".*");
      found = found || candidate == name ||
              (family && name.starts_with(candidate.substr(0, candidate.size() - 1)));
      list += (list.empty() ? "" : ", ") + std::string(candidate);
    }
    require(found, "ERR_OPTION", backend, " options: expected ", known.size() ? "one of " : "none", list,
            ", got ", shown(name));
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
