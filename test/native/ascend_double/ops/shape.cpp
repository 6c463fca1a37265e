// Ops that only move numbers: each output element comes from one input element.
#include "ascend_double/ops/dense.h"

namespace ascend_double {
namespace {

/// Copies a view of `in` to `out`, in the type that holds both.
void plan_move(Plan& plan, const Operand& view, const Operand& out) {
  plan.require_type(out, "out", view.dtype);
  plan.require_shape(out, "out", view.shape);
  plan.compute = [=](const Launch& launch) {
    if (kReals.has(view.dtype))
      store(launch, out, load<double>(launch, view));
    else
      store(launch, out, load<std::int64_t>(launch, view));
  };
}

std::size_t index(int axis) { return static_cast<std::size_t>(axis); }

/// Moves bytes along one axis: source(i) says from which index of the axis element i comes.
void plan_gather_axis(Plan& plan, const Operand& in, const Operand& out, int axis,
                      const std::function<std::int64_t(std::int64_t)>& source) {
  plan.require_type(out, "out", in.dtype);
  std::int64_t outer = 1, inner = 1;
  for (int i = 0; i < axis; ++i) outer *= in.size(i);
  for (int i = axis + 1; i < in.rank(); ++i) inner *= in.size(i);
  const std::int64_t from = in.size(axis), to = out.size(axis);
  plan.compute = [=](const Launch& launch) {
    const auto move = [&](auto type) {
      const auto values = load<decltype(type)>(launch, in);
      Dense<decltype(type)> result(out.count());
      for (std::int64_t o = 0; o < outer; ++o)
        for (std::int64_t i = 0; i < to; ++i)
          for (std::int64_t k = 0; k < inner; ++k)
            result[(o * to + i) * inner + k] = values[(o * from + source(i)) * inner + k];
      store(launch, out, result);
    };
    kReals.has(in.dtype) ? move(double{}) : move(std::int64_t{});
  };
}

}  // namespace

OP(math, Permute, Tensor x, Ints dims, Out y) {
  const Operand in = plan.in(x, "self", kAll), out = plan.out(y, "out", kAll);
  const Dims& order = plan.ints(dims, "dims");
  plan.require(order.size() == in.shape.size() &&
                   static_cast<int>(plan.axes(dims, "dims", in.rank()).size()) == in.rank(),
               "dims %s for rank %d", text_of(order).c_str(), in.rank());
  Operand view = in;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const std::size_t axis = index(plan.axis(order[i], in.rank()));
    view.shape[i] = in.shape[axis];
    view.strides[i] = in.strides[axis];
  }
  plan_move(plan, view, out);
}

OP(math, Expand, Tensor x, Ints size, Out y) {
  const Operand in = plan.in(x, "self", kAll), out = plan.out(y, "out", kAll);
  Dims shape = plan.ints(size, "size");
  plan.require(shape.size() >= in.shape.size(), "size %s is shorter than %s", text_of(shape).c_str(),
               text_of(in.shape).c_str());
  const std::size_t lead = shape.size() - in.shape.size();
  for (std::size_t i = 0; i < in.shape.size(); ++i) {
    if (shape[lead + i] == -1) shape[lead + i] = in.shape[i];
    plan.require(in.shape[i] == 1 || in.shape[i] == shape[lead + i], "%s does not expand to %s",
                 text_of(in.shape).c_str(), text_of(shape).c_str());
  }
  Operand view = in;
  view.strides = broadcast_strides(in, shape);
  view.shape = shape;
  plan_move(plan, view, out);
}

OP(math, Slice, Tensor x, std::int64_t dim, std::int64_t start, std::int64_t end, std::int64_t step, Out y) {
  const Operand in = plan.in(x, "self", kAll), out = plan.out(y, "out", kAll);
  const int axis = plan.axis(dim, in.rank());
  const std::int64_t size = in.size(axis);
  const auto bound = [&](std::int64_t value) {
    return std::clamp<std::int64_t>(value < 0 ? value + size : value, 0, size);
  };
  const std::int64_t first = bound(start), last = std::max(first, bound(end));
  plan.require(step > 0, "step: expected a positive number");
  Dims shape = in.shape;
  shape[index(axis)] = (last - first + step - 1) / step;
  plan.require_shape(out, "out", shape);
  plan_gather_axis(plan, in, out, axis, [=](std::int64_t i) { return first + i * step; });
}

OP(math, Flip, Tensor x, Ints dims, Out y) {
  const Operand in = plan.in(x, "self", kAll), out = plan.out(y, "out", kAll);
  const std::vector<int> axes = plan.axes(dims, "dims", in.rank());
  plan.require(axes.size() == 1, "the double flips one axis");
  plan.require_shape(out, "out", in.shape);
  const std::int64_t size = in.size(axes[0]);
  plan_gather_axis(plan, in, out, axes[0], [=](std::int64_t i) { return size - 1 - i; });
}

OP(math, Roll, Tensor x, Ints shifts, Ints dims, Out y) {
  const Operand in = plan.in(x, "self", kAll), out = plan.out(y, "out", kAll);
  const Dims& steps = plan.ints(shifts, "shifts");
  const std::vector<int> axes = plan.axes(dims, "dims", in.rank());
  plan.require(axes.size() == 1 && steps.size() == 1, "the double rolls one axis");
  plan.require_shape(out, "out", in.shape);
  const std::int64_t size = in.size(axes[0]), shift = steps[0];
  plan_gather_axis(plan, in, out, axes[0],
                   [=](std::int64_t i) { return ((i - shift) % size + size) % size; });
}

// ---- repeat_interleave: no DOUBLE, and the size of the result is checked
// ---------------------------------------------------------
namespace {

constexpr Types kRepeatable{ACL_UINT8, ACL_INT8,    ACL_INT16, ACL_INT32, ACL_INT64,
                            ACL_BOOL,  ACL_FLOAT16, ACL_BF16,  ACL_FLOAT};

void plan_repeat(Plan& plan, const Operand& in, std::int64_t repeats, int axis, std::int64_t output_size,
                 const Operand& out) {
  plan.require(repeats >= 0, "repeats: expected no negative number");
  plan.require(output_size == repeats * in.size(axis), "outputSize: expected %lld, got %lld",
               static_cast<long long>(repeats * in.size(axis)), static_cast<long long>(output_size));
  Dims shape = in.shape;
  shape[index(axis)] = output_size;
  plan.require_shape(out, "out", shape);
  plan_gather_axis(plan, in, out, axis, [=](std::int64_t i) { return i / repeats; });
}

Operand flattened(Plan& plan, Operand in) {
  plan.require(in.strides == contiguous_strides(in.shape), "the double flattens contiguous tensors only");
  in.shape = {in.count()};
  in.strides = {1};
  return in;
}

// repeats as a tensor on the device: one number for all, or one per index.
void plan_repeat_tensor(Plan& plan, const Operand& in, Tensor repeats, int axis, std::int64_t output_size,
                        Out y) {
  const Operand counts = plan.in(repeats, "repeats", kIndices, 0, 1), out = plan.out(y, "out", kRepeatable);
  plan.require_type(out, "out", in.dtype);
  plan.require(counts.count() == 1 || counts.count() == in.size(axis), "repeats: expected 1 or %lld numbers",
               static_cast<long long>(in.size(axis)));
  Dims shape = in.shape;
  shape[index(axis)] = output_size;
  plan.require_shape(out, "out", shape);
  std::int64_t outer = 1, inner = 1;
  for (int i = 0; i < axis; ++i) outer *= in.size(i);
  for (int i = axis + 1; i < in.rank(); ++i) inner *= in.size(i);
  const std::int64_t size = in.size(axis);
  plan.compute = [=](const Launch& launch) {
    const Dense<std::int64_t> times = load<std::int64_t>(launch, counts);
    std::vector<std::int64_t> source;
    for (std::int64_t i = 0; i < size; ++i)
      source.insert(source.end(), static_cast<std::size_t>(times[counts.count() == 1 ? 0 : i]), i);
    if (static_cast<std::int64_t>(source.size()) != output_size)
      refuse(ACL_ERROR_RT_AICORE_EXCEPTION, "repeats give %zu, outputSize is %lld", source.size(),
             static_cast<long long>(output_size));
    const Dense<double> values = load<double>(launch, in);
    Dense<double> result(out.count());
    for (std::int64_t o = 0; o < outer; ++o)
      for (std::int64_t i = 0; i < output_size; ++i)
        for (std::int64_t k = 0; k < inner; ++k)
          result[(o * output_size + i) * inner + k] =
              values[(o * size + source[static_cast<std::size_t>(i)]) * inner + k];
    store(launch, out, result);
  };
}

}  // namespace

OP(math, RepeatInterleaveIntWithDim, Tensor x, std::int64_t repeats, std::int64_t dim,
   std::int64_t output_size, Out y) {
  const Operand in = plan.in(x, "self", kRepeatable, 1), out = plan.out(y, "out", kRepeatable);
  plan_repeat(plan, in, repeats, plan.axis(dim, in.rank()), output_size, out);
}
OP(math, RepeatInterleaveInt, Tensor x, std::int64_t repeats, std::int64_t output_size, Out y) {
  const Operand in = flattened(plan, plan.in(x, "self", kRepeatable)), out = plan.out(y, "out", kRepeatable);
  plan_repeat(plan, in, repeats, 0, output_size, out);
}
OP(math, RepeatInterleaveWithDim, Tensor x, Tensor repeats, std::int64_t dim, std::int64_t output_size,
   Out y) {
  const Operand in = plan.in(x, "self", kRepeatable, 1);
  plan_repeat_tensor(plan, in, repeats, plan.axis(dim, in.rank()), output_size, y);
}
OP(math, RepeatInterleave, Tensor x, Tensor repeats, std::int64_t output_size, Out y) {
  const Operand in = flattened(plan, plan.in(x, "self", kRepeatable));
  plan_repeat_tensor(plan, in, repeats, 0, output_size, y);
}

// ---- several tensors
// ---------------------------------------------------------------------------------------------------------------
namespace {

/// Piece `part` of a tensor along an axis, as a view.
Operand piece(const Operand& whole, int axis, std::int64_t size) {
  Operand view = whole;
  view.shape[index(axis)] = size;
  return view;
}

void copy_piece(const Launch& launch, const Operand& from, std::int64_t from_offset, const Operand& to,
                std::int64_t to_offset) {
  Launch moved = launch;
  if (from.count() == 0) return;
  moved.at[static_cast<std::size_t>(from.slot)] +=
      from_offset * static_cast<std::int64_t>(bytes_of(from.dtype));
  const Dense<double> values = load<double>(moved, from);
  Dense<double> copy(values.count());
  std::copy(values.data(), values.data() + values.count(), copy.data());
  moved.at[static_cast<std::size_t>(to.slot)] += to_offset * static_cast<std::int64_t>(bytes_of(to.dtype));
  store(moved, to, copy);
}

void plan_split(Plan& plan, const Operand& in, int axis, const std::vector<Operand>& outs) {
  std::int64_t total = 0;
  for (const Operand& out : outs) {
    plan.require_type(out, "out", in.dtype);
    plan.require_shape(out, "out", piece(in, axis, out.rank() > axis ? out.size(axis) : 0).shape);
    total += out.size(axis);
  }
  plan.require(total == in.size(axis), "the pieces have %lld of %lld", static_cast<long long>(total),
               static_cast<long long>(in.size(axis)));
  plan.compute = [=](const Launch& launch) {
    std::int64_t at = 0;
    for (const Operand& out : outs) {
      copy_piece(launch, piece(in, axis, out.size(axis)), at * in.strides[index(axis)], out, 0);
      at += out.size(axis);
    }
  };
}

}  // namespace

OP(math, Cat, List tensors_in, std::int64_t dim, Out y) {
  const std::vector<Operand> in = plan.in(tensors_in, "tensors", kAll);
  const Operand out = plan.out(y, "out", kAll);
  const int axis = plan.axis(dim, out.rank());
  std::int64_t total = 0;
  for (const Operand& one : in) {
    plan.require_type(one, "tensors", out.dtype);
    plan.require(one.rank() == out.rank() && piece(one, axis, 1).shape == piece(out, axis, 1).shape,
                 "%s into %s", text_of(one.shape).c_str(), text_of(out.shape).c_str());
    total += one.size(axis);
  }
  plan.require(total == out.size(axis), "the pieces have %lld of %lld", static_cast<long long>(total),
               static_cast<long long>(out.size(axis)));
  plan.compute = [=](const Launch& launch) {
    std::int64_t at = 0;
    for (const Operand& one : in) {
      copy_piece(launch, one, 0, piece(out, axis, one.size(axis)), at * out.strides[index(axis)]);
      at += one.size(axis);
    }
  };
}

OP(math, SplitWithSize, Tensor x, Ints sizes, std::int64_t dim, List outs) {
  const Operand in = plan.in(x, "self", kAll);
  const Dims& wanted = plan.ints(sizes, "splitSize");
  const std::vector<Operand> out = plan.out(outs, "out", kAll);
  const int axis = plan.axis(dim, in.rank());
  plan.require(wanted.size() == out.size(), "expected one tensor per size");
  for (std::size_t i = 0; i < out.size(); ++i)
    plan.require(out[i].size(axis) == wanted[i], "out %zu has another size", i);
  plan_split(plan, in, axis, out);
}

OP(math, SplitTensor, Tensor x, std::uint64_t size, std::int64_t dim, List outs) {
  const Operand in = plan.in(x, "self", kAll);
  plan.require(size > 0, "splitSections: expected a positive number");
  plan_split(plan, in, plan.axis(dim, in.rank()), plan.out(outs, "out", kAll));
}

OP(math, Triu, Tensor x, std::int64_t diagonal, Out y) {
  const Operand in = plan.in(x, "self", kAll, 2), out = plan.out(y, "out", kAll);
  plan.require_shape(out, "out", in.shape);
  plan.require_type(out, "out", in.dtype);
  plan.compute = [=](const Launch& launch) {
    const Dense<double> values = load<double>(launch, in);
    Dense<double> result(values.count());
    const std::int64_t rows = in.size(-2), columns = in.size(-1);
    for (std::int64_t i = 0; i < values.count(); ++i)
      result[i] = i % columns - i / columns % rows >= diagonal ? values[i] : 0;
    store(launch, out, result);
  };
}
OP(math, Tril, Tensor x, std::int64_t diagonal, Out y) {
  const Operand in = plan.in(x, "self", kAll, 2), out = plan.out(y, "out", kAll);
  plan.require_shape(out, "out", in.shape);
  plan.require_type(out, "out", in.dtype);
  plan.compute = [=](const Launch& launch) {
    const Dense<double> values = load<double>(launch, in);
    Dense<double> result(values.count());
    const std::int64_t rows = in.size(-2), columns = in.size(-1);
    for (std::int64_t i = 0; i < values.count(); ++i)
      result[i] = i % columns - i / columns % rows <= diagonal ? values[i] : 0;
    store(launch, out, result);
  };
}

}  // namespace ascend_double
