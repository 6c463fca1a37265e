#include <algorithm>

#include "ascend_double/ops/rows.h"

namespace ascend_double {
namespace {

// out = f(row of floats, width, index of the row)
template <class Function>
void plan_rows(Plan& plan, const Operand& in, const Operand& out, const std::vector<int>& axes, bool keep,
               Function function) {
  plan.require_shape(out, "out", reduced_shape(in, axes, keep));
  const Rows rows = rows_of(in, axes);
  if (rows.width > 1) plan.workspace = 1024;
  plan.compute = [=](const Launch& launch) {
    const Dense<float> values = load<float>(launch, rows.operand);
    Dense<float> result(rows.rows);
    for (std::int64_t row = 0; row < rows.rows; ++row)
      result[row] = function(launch, values.data() + row * rows.width, rows.width, row);
    store(launch, out, result);
  };
}

float largest(const float* values, std::int64_t count) {
  float best = -std::numeric_limits<float>::infinity();
  for (std::int64_t i = 0; i < count; ++i)
    best = values[i] != values[i] || values[i] > best ? values[i] : best;
  return best;
}

float p_norm(const float* values, std::int64_t count, double p, std::int64_t start) {
  Dense<float> powers(count);
  for (std::int64_t i = 0; i < count; ++i) {
    const float magnitude = std::abs(values[i]);
    powers[i] = p == 2   ? magnitude * magnitude
                : p == 1 ? magnitude
                         : static_cast<float>(std::pow(magnitude, p));
  }
  if (std::isinf(p)) {
    for (std::int64_t i = 0; i < count; ++i) powers[i] = std::abs(values[i]);
    return largest(powers.data(), count);
  }
  const float total = sum(powers.data(), count, start);
  return p == 2 ? std::sqrt(total) : p == 1 ? total : static_cast<float>(std::pow(total, 1 / p));
}

}  // namespace

// dt must be the dtype of out: sums of narrow types are kept in f32, rounded once.
OP(math, ReduceSum, Tensor x, Ints dims, bool keep, int dtype, Out y) {
  const Operand in = plan.in(x, "self", kAll);
  const std::vector<int> axes = plan.axes(dims, "dims", in.rank());
  const Operand out = plan.out(y, "out", kNumbers);
  plan.require_type(out, "out", static_cast<aclDataType>(dtype));
  plan_rows(plan, in, out, axes, keep, [](const Launch&, const float* row, std::int64_t width, std::int64_t) {
    return sum(row, width);
  });
}

static void plan_mean(Plan& plan, const Operand& in, const Operand& out, const std::vector<int>& axes,
                      bool keep) {
  plan_rows(plan, in, out, axes, keep, [](const Launch&, const float* row, std::int64_t width, std::int64_t) {
    return sum(row, width) / static_cast<float>(width);
  });
}
OP(math, Mean, Tensor x, Ints dims, bool keep, int dtype, Out y) {
  const Operand in = plan.in(x, "self", kReals);
  const std::vector<int> axes = plan.axes(dims, "dim", in.rank());
  const Operand out = plan.out(y, "out", kReals);
  plan.require_type(out, "out", static_cast<aclDataType>(dtype));
  plan_mean(plan, in, out, axes, keep);
}
OP(math, MeanV2, Tensor x, Ints dims, bool keep, bool noop, Out y) {
  const Operand in = plan.in(x, "self", kReals);
  std::vector<int> axes = plan.axes(dims, "dim", in.rank());
  if (noop && plan.ints(dims, "dim").empty()) axes.clear();
  plan_mean(plan, in, plan.out(y, "out", kReals), axes, keep);
}

OP(math, Amax, Tensor x, Ints dims, bool keep, Out y) {
  const Operand in = plan.in(x, "self", kNumbers);
  const std::vector<int> axes = plan.axes(dims, "dim", in.rank());
  const Operand out = plan.out(y, "out", kNumbers);
  plan.require_type(out, "out", in.dtype);
  plan_rows(plan, in, out, axes, keep, [](const Launch&, const float* row, std::int64_t width, std::int64_t) {
    return largest(row, width);
  });
}
OP(math, Max, Tensor x, Out y) {
  const Operand in = plan.in(x, "self", kNumbers), out = plan.out(y, "out", kNumbers);
  plan.require_type(out, "out", in.dtype);
  std::vector<int> axes;
  for (int axis = 0; axis < in.rank(); ++axis) axes.push_back(axis);
  plan_rows(
      plan, in, out, axes, false,
      [](const Launch&, const float* row, std::int64_t width, std::int64_t) { return largest(row, width); });
}

OP(math, LogSumExp, Tensor x, Ints dims, bool keep, Out y) {
  const Operand in = plan.in(x, "self", kReals);
  const std::vector<int> axes = plan.axes(dims, "dim", in.rank());
  plan_rows(plan, in, plan.out(y, "out", kReals), axes, keep,
            [](const Launch&, const float* row, std::int64_t width, std::int64_t) {
              const float top = largest(row, width);
              Dense<float> shares(width);
              for (std::int64_t i = 0; i < width; ++i) shares[i] = std::exp(row[i] - top);
              return top + std::log(sum(shares.data(), width));
            });
}

OP(math, VarMean, Tensor x, Ints dims, std::int64_t correction, bool keep, Out variance, Out mean) {
  const Operand in = plan.in(x, "self", kFloats);
  const std::vector<int> axes = plan.axes(dims, "dim", in.rank());
  const Operand var = plan.out(variance, "varOut", kFloats), average = plan.out(mean, "meanOut", kFloats);
  plan.require_shape(var, "varOut", reduced_shape(in, axes, keep));
  plan.require_shape(average, "meanOut", reduced_shape(in, axes, keep));
  const Rows rows = rows_of(in, axes);
  plan.compute = [=](const Launch& launch) {
    const Dense<float> values = load<float>(launch, rows.operand);
    Dense<float> means(rows.rows), variances(rows.rows), squares(rows.width);
    for (std::int64_t row = 0; row < rows.rows; ++row) {
      const float* at = values.data() + row * rows.width;
      means[row] = sum(at, rows.width) / static_cast<float>(rows.width);
      for (std::int64_t i = 0; i < rows.width; ++i) squares[i] = (at[i] - means[row]) * (at[i] - means[row]);
      variances[row] = sum(squares.data(), rows.width) / static_cast<float>(rows.width - correction);
    }
    store(launch, var, variances);
    store(launch, average, means);
  };
}

// ---- norms: deterministic on request only
// ----------------------------------------------------------------------------------------
static void plan_norm(Plan& plan, const Operand& in, const Operand& out, double p,
                      const std::vector<int>& axes, bool keep) {
  const bool fixed = plan.deterministic;
  plan_rows(plan, in, out, axes, keep,
            [=](const Launch& launch, const float* row, std::int64_t width, std::int64_t index) {
              return p_norm(row, width, p, start_of(launch, fixed, index));
            });
}
OP(math, Norm, Tensor x, Scalar p, Ints dims, bool keep, Out y) {
  const Operand in = plan.in(x, "self", kFloats);
  const double power = plan.scalar(p, "pScalar").real;
  const std::vector<int> axes = plan.axes(dims, "dim", in.rank());
  plan_norm(plan, in, plan.out(y, "out", kFloats), power, axes, keep);
}
OP(math, LinalgVectorNorm, Tensor x, Scalar ord, Ints dims, bool keep, int dtype, Out y) {
  const Operand in = plan.in(x, "self", kFloats);
  const double power = plan.scalar(ord, "ord").real;
  std::vector<int> axes;
  for (int axis = 0; axis < in.rank(); ++axis) axes.push_back(axis);
  if (dims) axes = plan.axes(dims, "dims", in.rank());
  const Operand out = plan.out(y, "out", kFloats);
  plan.require_type(out, "out", static_cast<aclDataType>(dtype));
  plan_norm(plan, in, out, power, axes, keep);
}

OP(math, ForeachNorm, List tensors, Scalar p, List outs) {
  const std::vector<Operand> in = plan.in(tensors, "x", kFloats);
  const double power = plan.scalar(p, "scalar").real;
  const std::vector<Operand> out = plan.out(outs, "out", kFloats);
  plan.require(in.size() == out.size(), "expected one result per tensor");
  plan.require(in.size() <= 256, "expected at most 256 tensors, got %zu", in.size());
  for (const Operand& one : out) plan.require(one.count() == 1, "each result is one number");
  plan.compute = [=](const Launch& launch) {
    for (std::size_t i = 0; i < in.size(); ++i) {
      const Dense<float> values = load<float>(launch, in[i]);
      const float norm = p_norm(values.data(), values.count(), power, 0);
      store(launch, out[i], &norm);
    }
  };
}

OP(math, All, Tensor x, Ints dims, bool keep, Out y) {
  const Operand in = plan.in(x, "self", Types{ACL_BOOL, ACL_UINT8});
  const std::vector<int> axes = plan.axes(dims, "dim", in.rank());
  plan_rows(plan, in, plan.out(y, "out", Types{ACL_BOOL, ACL_UINT8}), axes, keep,
            [](const Launch&, const float* row, std::int64_t width, std::int64_t) {
              return static_cast<float>(std::all_of(row, row + width, [](float v) { return v != 0; }));
            });
}

OP(math, ArgMax, Tensor x, std::int64_t dim, bool keep, Out y) {
  const Operand in = plan.in(x, "self", kNumbers);
  const std::vector<int> axes{plan.axis(dim, in.rank())};
  plan_rows(plan, in, plan.out(y, "out", kIndices), axes, keep,
            [](const Launch&, const float* row, std::int64_t width, std::int64_t) {
              return static_cast<float>(std::max_element(row, row + width) - row);
            });
}

// ---- softmax
// ------------------------------------------------------------------------------------------------------------------------
static Operand with_axes_last(const Operand& operand, int axis) { return rows_of(operand, {axis}).operand; }

static void plan_softmax(Plan& plan, Tensor x, std::int64_t dim, Tensor y, bool logarithm) {
  const Operand in = plan.in(x, "self", kFloats, 0, 8), out = plan.out(y, "out", kFloats);
  plan.require_shape(out, "out", in.shape);
  plan.require_type(out, "out", in.dtype);
  const int axis = plan.axis(dim, in.rank());
  const Operand from = with_axes_last(in, axis), to = with_axes_last(out, axis);
  const std::int64_t width = from.rank() ? from.size(-1) : 1, rows = width ? from.count() / width : 0;
  plan.compute = [=](const Launch& launch) {
    const Dense<float> values = load<float>(launch, from);
    Dense<float> result(values.count());
    for (std::int64_t row = 0; row < rows; ++row) {
      const float* at = values.data() + row * width;
      float* y_row = result.data() + row * width;
      const float top = largest(at, width);
      for (std::int64_t i = 0; i < width; ++i) y_row[i] = std::exp(at[i] - top);
      const float total = sum(y_row, width);
      for (std::int64_t i = 0; i < width; ++i)
        y_row[i] = logarithm ? at[i] - top - std::log(total) : y_row[i] / total;
    }
    store(launch, to, result);
  };
}
OP(nn, Softmax, Tensor x, std::int64_t dim, Out y) { plan_softmax(plan, x, dim, y, false); }
OP(nn, LogSoftmax, Tensor x, std::int64_t dim, Out y) { plan_softmax(plan, x, dim, y, true); }

OP(nn, SoftmaxBackward, Tensor dy, Tensor y, std::int64_t dim, Out dx) {
  const Operand gradient = plan.in(dy, "gradOutput", kFloats), result = plan.in(y, "output", kFloats);
  const Operand out = plan.out(dx, "gradInput", kFloats);
  plan.require_shape(result, "output", gradient.shape);
  plan.require_shape(out, "gradInput", gradient.shape);
  plan.require_type(result, "output", gradient.dtype);
  plan.require_type(out, "gradInput", gradient.dtype);
  const int axis = plan.axis(dim, gradient.rank());
  const Operand g = with_axes_last(gradient, axis), p = with_axes_last(result, axis),
                to = with_axes_last(out, axis);
  const std::int64_t width = g.rank() ? g.size(-1) : 1, rows = width ? g.count() / width : 0;
  plan.compute = [=](const Launch& launch) {
    const Dense<float> slopes = load<float>(launch, g), shares = load<float>(launch, p);
    Dense<float> products(width), grads(slopes.count());
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t at = row * width;
      for (std::int64_t i = 0; i < width; ++i) products[i] = slopes[at + i] * shares[at + i];
      const float total = sum(products.data(), width);
      for (std::int64_t i = 0; i < width; ++i) grads[at + i] = (slopes[at + i] - total) * shares[at + i];
    }
    store(launch, to, grads);
  };
}

}  // namespace ascend_double
