// A test harness of one page: TEST("name") { CHECK(...); CHECK_NEAR(...); CHECK_THROWS(code, expr); }
// The program runs every test, or those whose name contains an argument, and ends with "N passed, N failed".
#pragma once
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.h"

namespace danceflux::test {

struct Case {
  std::string name;
  std::function<void()> body;
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Register {
  Register(std::string name, std::function<void()> body) {
    cases().push_back({std::move(name), std::move(body)});
  }
};

struct Failure : std::exception {
  explicit Failure(std::string text) : message(std::move(text)) {}
  const char* what() const noexcept override { return message.c_str(); }
  std::string message;
};

/// Thrown by a test that cannot run here.
struct Skipped {
  std::string reason;
};

template <class... Parts>
[[noreturn]] void fail_at(const char* file, int line, const Parts&... parts) {
  std::ostringstream text;
  text.precision(9);
  text << file << ':' << line << ": ";
  (text << ... << parts);
  throw Failure(text.str());
}

inline int run(int argc, char** argv) {
  int passed = 0, failed = 0;
  for (const Case& test : cases()) {
    bool wanted = argc < 2;
    for (int i = 1; i < argc; ++i) wanted = wanted || test.name.find(argv[i]) != std::string::npos;
    if (!wanted) continue;
    try {
      test.body();
      ++passed;
    } catch (const Skipped& skipped) {
      std::printf("SKIPPED %s: %s\n", test.name.c_str(), skipped.reason.c_str());
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAILED %s\n  %s\n", test.name.c_str(), error.what());
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed || !passed ? 1 : 0;
}

}  // namespace danceflux::test

#define DF_JOIN2(a, b) a##b
#define DF_JOIN(a, b) DF_JOIN2(a, b)
#define TEST(name)                                                                                      \
  static void DF_JOIN(test_body_, __LINE__)();                                                          \
  static const danceflux::test::Register DF_JOIN(test_entry_, __LINE__)(name,                           \
                                                                        DF_JOIN(test_body_, __LINE__)); \
  static void DF_JOIN(test_body_, __LINE__)()
#define CHECK(condition)                                                                    \
  do {                                                                                      \
    if (!(condition)) danceflux::test::fail_at(__FILE__, __LINE__, "expected " #condition); \
  } while (0)
#define CHECK_EQ(got, wanted)                                                                        \
  do {                                                                                               \
    const auto df_got = (got); /* copied: a reference into a temporary would dangle */               \
    const auto df_wanted = (wanted);                                                                 \
    if (!(df_got == df_wanted))                                                                      \
      danceflux::test::fail_at(__FILE__, __LINE__, #got ": expected ", df_wanted, ", got ", df_got); \
  } while (0)
#define CHECK_NEAR(got, wanted, tolerance)                                                             \
  do {                                                                                                 \
    const double df_got = (got), df_wanted = (wanted);                                                 \
    if (!(std::abs(df_got - df_wanted) <= (tolerance)))                                                \
      danceflux::test::fail_at(__FILE__, __LINE__, #got ": expected ", df_wanted, " +- ", (tolerance), \
                               ", got ", df_got);                                                      \
  } while (0)
/// The expression must throw danceflux::Error with this code.
#define CHECK_THROWS(error_code, expression)                                                           \
  do {                                                                                                 \
    bool df_thrown = false;                                                                            \
    try {                                                                                              \
      (void)(expression);                                                                              \
    } catch (const danceflux::Error& error) {                                                          \
      df_thrown = true;                                                                                \
      CHECK_EQ(error.code, std::string(error_code));                                                   \
    }                                                                                                  \
    if (!df_thrown) danceflux::test::fail_at(__FILE__, __LINE__, "expected " #expression " to throw"); \
  } while (0)
