// Devices that keep activations in bf16: the rows of the op table with bf16 activations, against the
// reference backend on the same rounded numbers.
#include <algorithm>

#include "harness.h"
#include "op_readers.h"
#include "reference_backend.h"

namespace danceflux::test {
namespace {

/// Of a result that is rounded to bf16 once or twice on its way (an op of parts rounds between them),
/// measured as op_cases.h says. Half a unit in the last place is 2^-9. Attention rounds its weights as well;
/// a gradient is a chain of up to four such results (of a quotient: dy / b, a / b, their product, its sum),
/// and starts from a rounded one.
struct Narrow {
  double forward, gradient;
};
Narrow narrow_tolerance(Family family) {
  return family == Family::attention ? Narrow{0x1p-6, 0x1p-5} : Narrow{0x1p-7, 0x1p-5};
}

/// Is it an activation? Vectors of weights, tables and what optimizers keep stay f32.
bool is_activation(const OpCase& row, const OpInput& input) {
  if (input.dtype != DType::f32) return false;
  switch (row.family) {
    case Family::exact:
    case Family::elementwise:
    case Family::reduce:
    case Family::attention:
      return true;
    case Family::matmul:
    case Family::conv:
      return input.shape.rank() >= 2;
    case Family::norm:
      return input.shape.rank() >= 2 && input.gradient;
    case Family::update:
      return false;
  }
  return false;
}

/// One number is normalised to what its rounding leaves of it.
bool is_sound(const OpCase& row) {
  if (row.size != Size::test || row.family == Family::update) return false;
  if (row.family != Family::norm) return true;
  return std::none_of(row.inputs.begin(), row.inputs.end(), [](const OpInput& input) {
    return input.shape.numel() > 0 && input.shape.numel() < 8;
  });
}

OpCase narrowed(OpCase row) {
  for (OpInput& input : row.inputs) {
    if (is_activation(row, input)) input.dtype = DType::bf16;
  }
  return row;
}

/// The same for a device of f32 activations: the numbers are rounded, and then told as f32.
OpCase widened(const OpCase& row, const OpCase& original) {
  OpCase wide = row;
  wide.forward = [forward = row.forward, original](std::span<const Tensor> in) {
    std::vector<Tensor> inputs;
    for (std::size_t i = 0; i < in.size(); ++i) {
      const DType dtype = original.inputs[i].dtype;
      inputs.push_back(is_activation(original, original.inputs[i]) ? ops::cast(in[i], dtype) : in[i]);
    }
    return forward(inputs);
  };
  return wide;
}

void compare(Complaints& complaints, const std::string& what, const Columns& got, const Columns& wanted,
             double allowed) {
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double error = error_of(got.at(i), wanted[i]);
    if (!(error <= allowed))
      complaints.add(what, ' ', i, ": expected an error of ", allowed, " or less, got ", error);
  }
}

}  // namespace

TEST("ops: bf16 activations agree with the reference backend") {
  const auto reference = std::make_shared<ReferenceBackend>();
  Complaints complaints;
  int rows = 0;
  for (const auto& [name, device] : test_devices()) {
    if (device->activation_dtype(DType::bf16) != DType::bf16) continue;
    for (const OpCase& original : op_cases()) {
      if (!is_sound(original)) continue;
      const OpCase row = narrowed(original), wide = widened(row, original);
      const Narrow allowed = narrow_tolerance(row.family);
      ++rows;
      complaints.during(row.name + " on " + name, [&, &device = device] {
        compare(complaints, row.name + ", result", forward_values(*device, row),
                forward_values(*reference, wide), allowed.forward);
        if (!row.differentiable) return;
        compare(complaints, row.name + ", gradient", gradient_values(*device, row),
                gradient_values(*reference, wide), allowed.gradient);
      });
    }
  }
  if (rows == 0) throw Skipped{"no device here keeps activations in bf16"};
  complaints.finish();
}

}  // namespace danceflux::test
