// What the readers of the op table share: the devices under test, and running a row on one.
#pragma once
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.h"
#include "op_cases.h"

namespace danceflux::test {

struct TestDevice {
  std::string name;  // "cpu/avx2"
  std::shared_ptr<Backend> device;
};

/// The CPU once for each instruction set of this machine, and more_test_devices(); or the one backend that
/// DANCEFLUX_TEST_BACKEND names ("cuda:0").
std::vector<TestDevice> test_devices();
/// Opens of further devices that a test program brings, known before its tests run.
std::vector<std::function<TestDevice()>>& more_test_devices();
/// "name" or "name:index"
std::shared_ptr<Backend> open_by_name(const std::string& name);

/// op_cases() and bf16_cases().
std::vector<OpCase> all_cases();
/// A row of bf16 activations is for devices that keep them.
bool takes(Backend& device, const OpCase& row);

/// Collects what is wrong, so that one run tells it all.
class Complaints {
 public:
  template <class... Parts>
  void add(const Parts&... parts) {
    ++count_;
    if (count_ > kShown) return;
    text_ << "\n    ";
    (text_ << ... << parts);
  }
  /// Runs check(); an error of the engine inside is a complaint about `what`, and the others go on.
  template <class Check>
  void during(const std::string& what, const Check& check) {
    try {
      check();
    } catch (const Error& error) {
      add(what, ": ", error.code, ": ", error.what());
    }
  }
  /// Fails the test when there are any.
  void finish() const;

 private:
  static constexpr int kShown = 40;
  int count_ = 0;
  std::ostringstream text_;
};

using Columns = std::vector<std::vector<double>>;

/// The elements as doubles; of the reference backend at its full precision.
std::vector<double> values_of(const Tensor& x);
/// All results of one forward.
Columns forward_values(Backend& device, const OpCase& row);
/// What rounding the results themselves may cost.
double result_rounding(Backend& device, const OpCase& row);
/// What flows into each result: the same numbers on every device.
Tensor seed_for(const OpCase& row, std::size_t output, const Tensor& result);

enum class Into : std::uint8_t { fresh, accumulated };
/// The gradient of each input (empty where none is asked). `accumulated`: added in place to a tensor of ones,
/// which is taken off again.
Columns gradient_values(Backend& device, const OpCase& row, Into into = Into::fresh);

}  // namespace danceflux::test
