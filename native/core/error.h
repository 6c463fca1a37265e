// Errors of the engine: one type, one line, one helper that makes them.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace danceflux {

/// Every refusal of the engine. `code` is stable (ERR_SHAPE, ERR_DTYPE, ERR_FILE, ERR_MEMORY, ERR_DEVICE,
/// ERR_ABORTED, ERR_PLUGIN ...); `what()` reads "op: expected ..., got ..."; `hint` says what to do, when
/// there is something to do.
class Error : public std::runtime_error {
 public:
  Error(std::string error_code, const std::string& message, std::string what_to_do = {})
      : std::runtime_error(message), code(std::move(error_code)), hint(std::move(what_to_do)) {}
  const std::string code;
  const std::string hint;
};

/// Throws Error(code, parts joined by operator<<).
template <class... Parts>
[[noreturn]] void fail(const char* code, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(code, message.str());
}

/// fail(code, parts...) unless `holds`. The parts are only formatted on failure.
template <class... Parts>
void require(bool holds, const char* code, const Parts&... parts) {
  if (!holds) [[unlikely]]
    fail(code, parts...);
}

}  // namespace danceflux
