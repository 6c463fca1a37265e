// In place, never recorded: what an optimizer does to weights, and what fills tensors.
#include "ops/check.h"
#include "ops/ops.h"

namespace danceflux::ops {
namespace {

/// Refuses to overwrite what an open tape may still read.
void check_unrecorded(const char* op, const Tensor& x) {
  require(!wants_gradient(x), "ERR_TAPE", op,
          ": expected a tensor that no open tape tracks, got one of shape ", x.shape());
}

}  // namespace

void adamw_(const Tensor& parameter, const Tensor& master, const Tensor& m, const Tensor& v,
            const Tensor& gradient, const AdamWArgs& args) {
  Backend& device = enter("adamw_", parameter);
  check_unrecorded("adamw_", parameter);
  check_stored("adamw_", "parameter", parameter);
  require(parameter.is_contiguous(), "ERR_SHAPE", "adamw_: expected a contiguous parameter, got strides ",
          parameter.strides());
  require(args.step >= 1, "ERR_SHAPE", "adamw_: expected a step of 1 or more, got ", args.step);
  for (const Tensor* state : {&master, &m, &v, &gradient}) {
    check_same_device("adamw_", parameter, *state);
    check_shape("adamw_", "master, m, v and gradient", *state, parameter.shape());
    require(state->dtype() == DType::f32 && state->is_contiguous(), "ERR_DTYPE",
            "adamw_: expected master, m, v and gradient contiguous in f32, got ", name_of(state->dtype()));
  }
  device.adamw(parameter, master, m, v, gradient, args);
}

void fill_(const Tensor& x, float value) {
  Backend& device = enter("fill_", x);
  check_unrecorded("fill_", x);
  device.fill(x, value);
}

void copy_(const Tensor& to, const Tensor& from) {
  Backend& device = enter("copy_", to);
  check_unrecorded("copy_", to);
  check_same_device("copy_", to, from);
  check_shape("copy_", "a source", from, to.shape());
  require(to.dtype() == from.dtype() || (is_float(to.dtype()) && is_float(from.dtype())), "ERR_DTYPE",
          "copy_: expected two float types or one type, got ", name_of(from.dtype()), " to ",
          name_of(to.dtype()));
  device.copy(to, from);
}

void add_(const Tensor& to, const Tensor& from, float scale) {
  Backend& device = enter("add_", to);
  check_unrecorded("add_", to);
  check_activation("add_", to);
  check_same_device("add_", to, from);
  check_shape("add_", "a term", from, to.shape());
  device.binary(BinaryOp::add, to, to, as_dtype(from, to.dtype()), scale);
}

void lerp_(const Tensor& average, const Tensor& value, double decay) {
  Backend& device = enter("lerp_", average);
  check_unrecorded("lerp_", average);
  check_activation("lerp_", average);
  check_same_device("lerp_", average, value);
  check_shape("lerp_", "a value", value, average.shape());
  device.unary(UnaryOp::affine, average, average, static_cast<float>(decay), 0);
  device.binary(BinaryOp::add, average, average, as_dtype(value, average.dtype()),
                static_cast<float>(1 - decay));
}

// One partial sum for each row of each tensor, one wait for all of them, and the rest in double: neither a
// long row of f32 additions nor a wait per tensor.
double sum_of_squares(std::span<const Tensor> tensors) {
  if (tensors.empty()) return 0;
  Backend& device = enter("sum_of_squares", tensors[0]);
  std::int64_t rows = 0;
  for (const Tensor& x : tensors) {
    check_same_device("sum_of_squares", tensors[0], x);
    check_activation("sum_of_squares", x);
    rows += x.rank() >= 2 ? x.dim(0) : 1;
  }
  const Tensor partial = device.empty({rows, 1});
  std::int64_t row = 0;
  for (const Tensor& x : tensors) {
    const std::int64_t count = x.rank() >= 2 ? x.dim(0) : 1;
    const Tensor flat = packed(x).view({count, count ? x.numel() / count : 0});
    device.reduce(ReduceOp::sum_of_squares, partial.narrow(0, row, count), flat);
    row += count;
  }
  double total = 0;
  for (const float value : to_host(partial)) total += value;
  return total;
}

void sums_of_squares_(const Tensor& out, const Tensor& x) {
  Backend& device = enter("sums_of_squares_", x);
  check_same_device("sums_of_squares_", x, out);
  const std::int64_t parts = out.numel();
  require(out.dtype() == DType::f32 && x.dtype() == DType::f32 && out.is_contiguous() && x.is_contiguous(),
          "ERR_DTYPE", "sums_of_squares_: expected contiguous f32 tensors, got ", name_of(x.dtype()), " and ",
          name_of(out.dtype()));
  require(parts > 0 && x.numel() % parts == 0, "ERR_SHAPE", "sums_of_squares_: expected a multiple of ",
          parts, " elements, got ", x.numel());
  device.reduce(ReduceOp::sum_of_squares, out.view({parts, 1}), x.view({parts, x.numel() / parts}));
}

}  // namespace danceflux::ops
