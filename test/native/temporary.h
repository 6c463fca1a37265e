// Files of a test: a folder that goes away with it, and what an expression throws.
#pragma once
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harness.h"

namespace danceflux::test {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "danceflux-test-XXXXXX").string();
    CHECK(::mkdtemp(name.data()) != nullptr);
    folder_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string path(std::string_view name = "") const { return (folder_ / name).string(); }
  /// Writes a file and answers its path.
  std::string write(std::string_view name, std::string_view bytes) const {
    std::ofstream file(folder_ / name, std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    CHECK(file.good());
    return path(name);
  }
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const auto& entry : std::filesystem::directory_iterator(folder_))
      all.push_back(entry.path().filename());
    return all;
  }

 private:
  std::filesystem::path folder_;
};

inline std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  CHECK(file.good());
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The refusal of `run`; the test fails when there is none.
template <class Run>
Error error_of(Run run) {
  try {
    run();
  } catch (const Error& error) {
    return error;
  }
  fail_at(__FILE__, __LINE__, "expected an error");
}

/// The message must contain `part`.
inline void check_told(const Error& error, std::string_view part) {
  const std::string message = error.what();
  if (message.find(part) == std::string::npos) {
    fail_at(__FILE__, __LINE__, "expected a message with \"", part, "\", got \"", message, "\"");
  }
  if (message.find('\n') != std::string::npos)
    fail_at(__FILE__, __LINE__, "expected one line, got \"", message, "\"");
}

}  // namespace danceflux::test
