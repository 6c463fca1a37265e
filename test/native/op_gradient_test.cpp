// Gradients: of the reference backend against finite differences in double, of every device against the
// reference backend.
#include <algorithm>
#include <cmath>

#include "harness.h"
#include "op_readers.h"
#include "reference_backend.h"

namespace danceflux::test {
namespace {

bool is_tested(const OpCase& row) { return row.size == Size::test && row.differentiable; }

/// What a device may lose that keeps the gradients of stored weights in their own dtype.
double input_rounding(Backend& device, const OpCase& row) {
  double rounding = 0;
  for (const OpInput& input : row.inputs) {
    if (is_float(input.dtype))
      rounding = std::max(rounding, rounding_of(device.activation_dtype(input.dtype)));
  }
  return rounding;
}

double weighted_sum(const OpCase& row, std::span<const Tensor> inputs) {
  double total = 0;
  const std::vector<Tensor> results = row.forward(inputs);
  for (std::size_t i = 0; i < results.size(); ++i) {
    const auto values = ReferenceBackend::read(results[i]),
               weights = ReferenceBackend::read(seed_for(row, i, results[i]));
    for (std::size_t j = 0; j < values.size(); ++j) total += values[j] * weights[j];
  }
  return total;
}

/// Moves input `i` along a random direction, both ways, and compares the slope with the gradient's.
void check_slope(Backend& device, const OpCase& row, std::size_t i, const std::vector<double>& gradient) {
  constexpr double kStep = 1e-5;
  std::vector<Tensor> inputs = make_inputs(device, row);
  const auto start = ReferenceBackend::read(inputs[i]);
  const auto direction = normal_stream(row.name + "/direction", static_cast<std::int64_t>(start.size()));
  const auto moved = [&](double step) {
    std::vector<double> values = start;
    for (std::size_t j = 0; j < values.size(); ++j) values[j] += step * direction[j];
    ReferenceBackend::write(inputs[i], values);
    return weighted_sum(row, inputs);
  };
  const double measured = (moved(kStep) - moved(-kStep)) / (2 * kStep);
  CHECK_EQ(gradient.size(), start.size());
  double slope = 0, squares = 0;
  for (std::size_t j = 0; j < gradient.size(); ++j) {
    slope += gradient[j] * direction[j];
    squares += gradient[j] * gradient[j];
  }
  if (!(std::abs(slope - measured) <= 1e-7 * std::sqrt(squares) + 1e-8)) {
    fail_at(__FILE__, __LINE__, row.name, ", input ", i, ": expected a slope of ", measured, ", got ", slope);
  }
}

}  // namespace

TEST("gradient: the reference backend agrees with finite differences") {
  const auto device = std::make_shared<ReferenceBackend>();
  for (OpCase row : op_cases()) {
    if (!is_tested(row)) continue;
    // A step would be lost in the rounding of a stored weight; the rule is the same for f32.
    for (OpInput& input : row.inputs) input.dtype = is_float(input.dtype) ? DType::f32 : input.dtype;
    const Columns gradients = gradient_values(*device, row);
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      if (row.inputs[i].gradient && row.inputs[i].shape.numel() > 0)
        check_slope(*device, row, i, gradients[i]);
    }
  }
}

TEST("gradient: every device agrees with the reference backend") {
  const auto reference = std::make_shared<ReferenceBackend>();
  const auto devices = test_devices();
  Complaints complaints;
  for (const OpCase& row : all_cases()) {
    if (!is_tested(row)) continue;
    const Columns wanted = gradient_values(*reference, row);
    for (const auto& [name, device] : devices) {
      if (!takes(*device, row)) continue;
      complaints.during(row.name + " on " + name, [&, &device = device, &name = name] {
        const double rounded = gradient_tolerance(row.family, row.activations);
        for (const Into into : {Into::fresh, Into::accumulated}) {
          const Columns got = gradient_values(*device, row, into);
          for (std::size_t i = 0; i < wanted.size(); ++i) {
            const double own = rounding_of(device->activation_dtype(row.inputs[i].dtype));
            const double allowed =
                rounded + std::max(result_rounding(*device, row) + own, input_rounding(*device, row));
            const double error = error_of(got[i], wanted[i]);
            if (!(error <= allowed)) {
              complaints.add(row.name, " on ", name, ", input ", i, ": expected an error of ", allowed,
                             " or less, got ", error);
            }
          }
        }
      });
    }
  }
  complaints.finish();
}

TEST("gradient: the same bits again") {
  for (const auto& [name, device] : test_devices()) {
    if (name.starts_with("cpu/")) continue;  // there, for every number of threads
    Complaints complaints;
    for (const OpCase& row : all_cases()) {
      if (!is_tested(row) || !takes(*device, row)) continue;
      if (gradient_values(*device, row) != gradient_values(*device, row))
        complaints.add(row.name, " on ", name, ": expected the same bits again");
    }
    complaints.finish();
  }
}

}  // namespace danceflux::test
