// The op table, timed: one JSON object per line, {"name", "ours", "unit", "checked"}. Each row is checked
// against the reference backend before it is timed; a row that is wrong is not timed, and makes the program
// fail.
//
//   danceflux_op_bench [--device cpu] [--options '{"threads": 2}'] [--filter TEXT] [--support]
//
// --support lists instead, for every row, which shortcuts the device takes and why it declines the others.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>

#include "backend/registry.h"
#include "core/json.h"
#include "op_readers.h"
#include "reference_backend.h"

namespace danceflux::test {
namespace {

using Clock = std::chrono::steady_clock;

struct Arguments {
  std::string device = "cpu", options = "{}", filter;
  bool support = false;
};

void print(const std::string& name, double ours, const char* unit, bool checked) {
  std::printf("{\"name\": %s, \"ours\": %.5g, \"unit\": \"%s\", \"checked\": %s}\n", json_quote(name).c_str(),
              ours, unit, checked ? "true" : "false");
  std::fflush(stdout);
}

/// The shortest of many runs, in seconds. `prepare` is not timed.
double shortest(Backend& device, const std::function<void()>& prepare, const std::function<void()>& work) {
  constexpr double kEnough = 0.4;
  double best = 1e30, total = 0;
  for (int run = 0; run < 1000 && (run < 3 || total < kEnough); ++run) {
    prepare();
    device.synchronize();
    const auto start = Clock::now();
    work();
    device.synchronize();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

bool agree(const Columns& got, const Columns& wanted, double tolerance) {
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (!(error_of(got.at(i), wanted[i]) <= tolerance)) return false;
  }
  return true;
}

/// Arithmetic of a backward, in forwards: two products for each of a layer's, five for attention's two; else
/// what is read and written.
double backward_factor(Family family) {
  if (family == Family::matmul || family == Family::conv) return 2;
  return family == Family::attention ? 2.5 : 1.5;
}

bool time_row(Backend& device, const OpCase& row) {
  const auto reference = std::make_shared<ReferenceBackend>();
  const double rounding = result_rounding(device, row);
  const bool forward_good = agree(forward_values(device, row), forward_values(*reference, row),
                                  forward_tolerance(row.family, row.activations) + rounding);
  const bool backward_good = agree(gradient_values(device, row), gradient_values(*reference, row),
                                   gradient_tolerance(row.family, row.activations) + rounding);
  if (!forward_good) print(row.name + ", forward", 0, "wrong", false);
  if (!backward_good) print(row.name + ", backward", 0, "wrong", false);
  if (!forward_good || !backward_good) return false;

  const double work = (row.flops > 0 ? row.flops : row.bytes) * 1e-9;
  const char* unit = row.flops > 0 ? "GFLOP/s" : "GB/s";
  const std::vector<Tensor> inputs = make_inputs(device, row);
  std::vector<Tensor> results, seeds;
  const double forward = shortest(
      device, [&] { results.clear(); }, [&] { results = row.forward(inputs); });
  print(row.name + ", forward", work / forward, unit, true);
  for (std::size_t i = 0; i < results.size(); ++i) seeds.push_back(seed_for(row, i, results[i]));
  std::unique_ptr<Tape> tape;
  const auto record = [&] {
    results.clear();
    tape.reset();
    tape = std::make_unique<Tape>();
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (row.inputs[i].gradient) tape->watch(inputs[i]);
    }
    results = row.forward(inputs);
  };
  const double backward = shortest(device, record, [&] { tape->backward(results, seeds); });
  print(row.name + ", backward", work * backward_factor(row.family) / backward, unit, true);
  return true;
}

/// What an op costs before the device does anything: one element, nothing to compute.
void time_overhead(Backend& device) {
  constexpr int kCalls = 10000;
  const Tensor x = ops::full(device, {1}, 1);
  const auto call = [&] {
    for (int i = 0; i < kCalls; ++i) ops::add(x, x);
  };
  const auto nothing = [] {};
  print("one op, not recorded", shortest(device, nothing, call) / kCalls * 1e9, "ns", true);
  std::unique_ptr<Tape> tape;
  Tensor y;
  const auto record = [&] {
    y = Tensor();
    tape.reset();
    tape = std::make_unique<Tape>();
    tape->watch(x);
  };
  const auto chain = [&] {
    y = x;
    for (int i = 0; i < kCalls; ++i) y = ops::add(y, x);
  };
  print("one op, recorded", shortest(device, record, chain) / kCalls * 1e9, "ns", true);
  const auto recorded = [&] {
    record();
    chain();
  };
  const Tensor seed = ops::full(device, {1}, 1);
  print("one op, backward", shortest(device, recorded, [&] { tape->backward(y, seed); }) / kCalls * 1e9, "ns",
        true);
}

/// A fresh device for each row, so that what it declined belongs to this row.
void list_support(const Arguments& arguments) {
  for (const OpCase& row : op_cases()) {
    if (!*row.shortcut || row.name.find(arguments.filter) == std::string::npos) continue;
    const auto device = open_backend(arguments.device, 0, arguments.options);
    gradient_values(*device, row);
    std::string reasons;
    for (const auto& [reason, count] : device->declined())
      reasons.append(reasons.empty() ? "" : "; ").append(reason);
    std::printf("{\"name\": %s, \"taken\": %s, \"declined\": %s}\n", json_quote(row.name).c_str(),
                reasons.empty() ? "true" : "false", json_quote(reasons).c_str());
  }
}

int run(const Arguments& arguments) {
  if (arguments.support) {
    list_support(arguments);
    return 0;
  }
  const auto device = open_backend(arguments.device, 0, arguments.options);
  bool good = true;
  for (const OpCase& row : all_cases()) {
    if (row.size == Size::bench && row.name.find(arguments.filter) != std::string::npos)
      good = time_row(*device, row) && good;
  }
  if (arguments.filter.empty()) time_overhead(*device);
  return good ? 0 : 1;
}

}  // namespace
}  // namespace danceflux::test

int main(int argc, char** argv) {
  danceflux::test::Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--support") {
      arguments.support = true;
    } else if (i + 1 < argc && name == "--device") {
      arguments.device = argv[++i];
    } else if (i + 1 < argc && name == "--options") {
      arguments.options = argv[++i];
    } else if (i + 1 < argc && name == "--filter") {
      arguments.filter = argv[++i];
    } else {
      std::fprintf(
          stderr, "usage: danceflux_op_bench [--device NAME] [--options JSON] [--filter TEXT] [--support]\n");
      return 2;
    }
  }
  try {
    return danceflux::test::run(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "danceflux_op_bench: %s\n", error.what());
    return 1;
  }
}
