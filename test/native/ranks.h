// Ranks of a communicator in a test: as threads of this process or as processes of their own.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "backend/communicator.h"

namespace danceflux::test {

struct Rank {
  int rank, size;
  Backend& device;
  Communicator& communicator;

  void wait(const Event& event) const { device.wait(event); }
};

struct RanksOptions {
  std::string engine = "shared-memory";
  double timeout_seconds = 60;
  std::string engine_options = "{}";
  /// Of every rank; accelerators are numbered as the ranks are.
  std::string device = "cpu";
  std::string device_options = R"({"threads": 1})";
  /// Where a rank's device and setup do not come from the registry.
  std::function<std::shared_ptr<Backend>()> open_device = {};
  std::function<std::unique_ptr<CommunicatorSetup>(const std::shared_ptr<Backend>&,
                                                   const CommunicatorOptions&)>
      make_setup = {};
};

/// Runs body on `size` ranks at once, each with a device of its own; the first failure fails the test, with
/// its rank.
void on_threads(int size, const RanksOptions& options, const std::function<void(const Rank&)>& body);

/// The same in processes. `death` gets them to see to, by rank, after each has been told to start; a rank may
/// be killed there. Returns what each body answered, "" for one that died.
using Deaths = std::function<void(const std::vector<int>& processes)>;
std::vector<std::string> in_processes(int size, const RanksOptions& options,
                                      const std::function<std::string(const Rank&)>& body,
                                      const Deaths& deaths = {});

/// The message of what `run` throws, "" when nothing.
std::string message_of(const std::function<void()>& run);

/// The elements of a dense tensor as f32.
std::vector<float> downloaded(Backend& device, const Tensor& x);

/// `count` elements of `dtype` in the middle of a larger tensor whose other bytes must not change.
class Guarded {
 public:
  Guarded(Backend& device, std::int64_t count, DType dtype);
  const Tensor& tensor() const { return view_; }
  void set(const std::vector<float>& values) const;
  std::vector<float> values() const;
  void check() const;

 private:
  Backend& device_;
  Tensor whole_, view_;
};

}  // namespace danceflux::test
