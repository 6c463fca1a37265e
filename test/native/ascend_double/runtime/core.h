// What every part of the double shares: how an exported function is written, how it fails, what is counted.
//
// ENTRY(library, name, parameters...) { body } defines one function of the ABI that returns a status. Around
// the body stands the door: it counts the call, lets an injected fault answer instead, and turns a thrown
// Refusal into the status and the text that aclGetRecentErrMsg gives.
#pragma once
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <type_traits>
#include <vector>

#include "ascend_double/cann.h"

namespace ascend_double {

/// A status with its text, on its way out of the double.
struct Refusal {
  int code;
  std::string text;
};

[[noreturn]] void refuse(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));
std::string text_of(const char* format, ...) __attribute__((format(printf, 1, 2)));

/// A broken rule that hardware would answer with silent corruption or a leak. Kept for
/// ascend_double_violation; ends the process where ASCEND_DOUBLE_ABORT=1.
void violation(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- settings: ASCEND_DOUBLE_<NAME> in the environment, or ascend_double_set(NAME, value)
// ---------------------------------
std::string setting(const char* name, const char* otherwise);
std::int64_t setting(const char* name, std::int64_t otherwise);

// ---- the table of exported functions
// -----------------------------------------------------------------------------------
enum class Library : std::uint8_t { acl, base, math, nn, cv, transformer, hccl, hcomm };
enum Since : std::uint8_t { always = 8, nine = 9 };

struct Function {
  Library library;
  Since since;
  std::string name;
  void* address;
};

/// All of them, in the order of registration.
std::vector<Function>& functions();

struct Register {
  Register(Library library, Since since, std::string name, void* address) {
    functions().push_back({library, since, std::move(name), address});
  }
};

// ---- the door
// ------------------------------------------------------------------------------------------------------------
/// Counts a call; the code of a fault that is due now, or 0. A device error (5070xx) is held back first: the
/// task that this call queues will fail with it, as on hardware.
int enter(const char* name);
/// A device error held back by enter() that no task has taken, or 0.
int leave();
/// Taken by the task that is being queued.
int take_held_fault();
void remember_error(int code, const std::string& text);

template <const char* name, auto body>
struct Door;
template <const char* name, class Result, class... Args, Result (*body)(Args...)>
struct Door<name, body> {
  static Result call(Args... args) {
    if (const int fault = enter(name)) return failed(fault, text_of("%s: injected fault", name));
    try {
      const Result result = body(args...);
      if (const int fault = leave()) return failed(fault, text_of("%s: injected fault", name));
      return result;
    } catch (const Refusal& refusal) {
      leave();
      return failed(refusal.code, text_of("%s: %s", name, refusal.text.c_str()));
    } catch (const std::bad_alloc&) {
      return failed(ACL_ERROR_BAD_ALLOC, text_of("%s: out of host memory", name));
    }
  }

 private:
  static Result failed(int code, const std::string& text) {
    remember_error(code, text);
    if constexpr (std::is_pointer_v<Result>)
      return nullptr;
    else
      return static_cast<Result>(code);
  }
};

#define ASCEND_DOUBLE_ENTRY(result, library, since, name, ...)                          \
  static result body_##name(__VA_ARGS__);                                               \
  static constexpr char name_##name[] = #name;                                          \
  static const ::ascend_double::Register entry_##name(                                  \
      ::ascend_double::Library::library, ::ascend_double::since, #name,                 \
      reinterpret_cast<void*>(&::ascend_double::Door<name_##name, body_##name>::call)); \
  static result body_##name(__VA_ARGS__)
#define ENTRY(library, name, ...) ASCEND_DOUBLE_ENTRY(int, library, always, name, __VA_ARGS__)
#define ENTRY_OF(result, library, name, ...) ASCEND_DOUBLE_ENTRY(result, library, always, name, __VA_ARGS__)
/// From CANN 9 on only.
#define ENTRY9(library, name, ...) ASCEND_DOUBLE_ENTRY(int, library, nine, name, __VA_ARGS__)

// ---- the chip that is played
// -----------------------------------------------------------------------------------------------
struct Soc {
  std::string name;
  int generation;  // 1: Ascend910A and kin; 2: A2; 3: A3; 950; 310
};
const Soc& soc();
/// 8 or 9: the layout whose libraries were opened.
int layout();

/// Seeded (ASCEND_DOUBLE_SEED): for hostile choices, never for results that are promised.
std::uint64_t random_bits();

}  // namespace ascend_double
