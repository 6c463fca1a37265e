// The options of a device, as they come through the door: one JSON object, nested objects read as dotted
// names.
//   {"threads": 2, "hccl": {"bufferSizeMiB": 800}}   ->   threads, hccl.bufferSizeMiB
#pragma once
#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <variant>

namespace danceflux {

class Json;

class DeviceOptions {
 public:
  /// Throws ERR_OPTION with the position for anything but one object of numbers, strings, booleans, nulls
  /// (absent) and objects.
  static DeviceOptions parse(std::string_view json);

  /// Throws ERR_OPTION naming the first option that is not in `known`, and what is. "nccl.*" there is every
  /// option whose name begins with "nccl.".
  void allow_only(std::string_view backend, std::initializer_list<std::string_view> known) const;

  /// The value, or `absent`. Throws ERR_OPTION when it is of another kind.
  std::string text(const std::string& name, std::string absent) const;
  std::int64_t integer(const std::string& name, std::int64_t absent) const;
  double number(const std::string& name, double absent) const;
  bool flag(const std::string& name, bool absent) const;

 private:
  using Value = std::variant<double, bool, std::string>;
  void flatten(const std::string& prefix, const Json& object);
  std::map<std::string, Value> values_;
};

}  // namespace danceflux
