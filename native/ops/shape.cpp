// Making tensors and changing how they are looked at.
#include <algorithm>

#include "ops/check.h"
#include "ops/ops.h"

namespace danceflux::ops {

Tensor packed(const Tensor& x) {
  if (x.is_contiguous()) return x;
  const Tensor out = like(x);
  backend_of(x).copy(out, x);
  return out;
}

Tensor as_dtype(const Tensor& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  Backend& device = backend_of(x);
  const Tensor out = device.empty(x.shape(), dtype);
  device.copy(out, x);
  return out;
}

Tensor empty_like(const Tensor& x) {
  enter("empty_like", x);
  return like(x);
}

Tensor full(Backend& device, const Shape& shape, float value) {
  throw_if_cancelled();
  const Tensor out = device.empty(shape);
  device.fill(out, value);
  return out;
}

Tensor from_host(Backend& device, const Shape& shape, std::span<const float> values, DType dtype) {
  throw_if_cancelled();
  require(shape.numel() == static_cast<std::int64_t>(values.size()), "ERR_SHAPE", "from_host: expected ",
          shape.numel(), " values for ", shape, ", got ", values.size());
  const Tensor out = device.empty(shape, dtype);
  if (dtype == DType::f32) {
    device.upload(out, values.data());
    return out;
  }
  std::vector<std::byte> converted(out.bytes());
  convert_elements(converted.data(), dtype, values.data(), DType::f32, values.size());
  device.upload(out, converted.data());
  return out;
}

Tensor from_host(Backend& device, const Shape& shape, std::span<const std::int32_t> values) {
  throw_if_cancelled();
  require(shape.numel() == static_cast<std::int64_t>(values.size()), "ERR_SHAPE", "from_host: expected ",
          shape.numel(), " values for ", shape, ", got ", values.size());
  const Tensor out = device.empty(shape, DType::i32);
  device.upload(out, values.data());
  return out;
}

std::vector<float> to_host(const Tensor& x) {
  Backend& device = enter("to_host", x);
  const Tensor source = packed(x);
  std::vector<float> values(static_cast<std::size_t>(x.numel()));
  if (x.dtype() == DType::f32) {
    device.download(values.data(), source);
    return values;
  }
  std::vector<std::byte> stored(source.bytes());
  device.download(stored.data(), source);
  convert_elements(values.data(), DType::f32, stored.data(), x.dtype(), values.size());
  return values;
}

Tensor contiguous(const Tensor& x) {
  enter("contiguous", x);
  if (x.is_contiguous()) return x;
  const Tensor out = packed(x);
  if (!tracked(x)) return out;
  return recorded("contiguous", out, {x}, [](Gradients& gradients) { gradients.add(0, gradients.output()); });
}

Tensor cast(const Tensor& x, DType dtype) {
  Backend& device = enter("cast", x);
  if (x.dtype() == dtype) return x;
  require(is_float(x.dtype()) && is_float(dtype), "ERR_DTYPE", "cast: expected two float types, got ",
          name_of(x.dtype()), " to ", name_of(dtype));
  const Tensor out = as_dtype(x, dtype);
  if (!tracked(x)) return out;
  return recorded("cast", out, {x}, [dtype = compute_dtype(device, x)](Gradients& gradients) {
    gradients.add(0, as_dtype(gradients.output(), dtype));
  });
}

Tensor reshape(const Tensor& x, const Shape& shape) {
  enter("reshape", x);
  if (x.shape() == shape) return x;
  const bool view = x.can_view(shape);
  const Tensor out = view ? x.view(shape) : packed(x).view(shape);
  if (!tracked(x)) return out;
  if (view) Tape::current()->note_view(out, x);
  return recorded("reshape", out, {x}, [shape = x.shape()](Gradients& gradients) {
    gradients.add(0, reshape(gradients.output(), shape));
  });
}

Tensor permute(const Tensor& x, const Shape& order) {
  enter("permute", x);
  const Tensor out = x.permute(order);
  if (!tracked(x)) return out;
  Tape::current()->note_view(out, x);
  Shape inverse = order;
  for (int axis = 0; axis < order.rank(); ++axis)
    inverse[x.shape().index(static_cast<int>(order[axis]))] = axis;
  return recorded("permute", out, {x},
                  [inverse](Gradients& gradients) { gradients.add(0, gradients.output().permute(inverse)); });
}

Tensor transpose(const Tensor& x, int axis_a, int axis_b) {
  enter("transpose", x);
  const Tensor out = x.transpose(axis_a, axis_b);
  if (!tracked(x)) return out;
  Tape::current()->note_view(out, x);
  return recorded("transpose", out, {x}, [axis_a, axis_b](Gradients& gradients) {
    gradients.add(0, gradients.output().transpose(axis_a, axis_b));
  });
}

// The parts that several narrows leave add up in one tensor: the first makes it, the others find it as the
// accumulator.
Tensor narrow(const Tensor& x, int axis, std::int64_t start, std::int64_t length) {
  enter("narrow", x);
  const Tensor out = x.narrow(axis, start, length);
  if (!tracked(x)) return out;
  return recorded("narrow", out, {x}, [shape = x.shape(), axis, start, length](Gradients& gradients) {
    const Tensor dy = gradients.output();
    Backend& device = backend_of(dy);
    if (const Tensor sum = gradients.accumulator(0); sum && sum.dtype() == dy.dtype()) {
      const Tensor part = sum.narrow(axis, start, length);
      return device.binary(BinaryOp::add, part, part, dy, 1);
    }
    Tensor dx = device.empty(shape, dy.dtype());
    if (length != shape[axis]) device.fill(dx, 0);
    device.copy(dx.narrow(axis, start, length), dy);
    gradients.add(0, std::move(dx));
  });
}

Tensor expand(const Tensor& x, const Shape& shape) {
  enter("expand", x);
  if (x.shape() == shape) return x;
  const Tensor out = x.expand(shape);
  if (!tracked(x)) return out;
  return recorded("expand", out, {x}, [shape = x.shape()](Gradients& gradients) {
    gradients.add(0, sum_to(gradients.output(), shape));
  });
}

Tensor concat(std::span<const Tensor> parts, int axis) {
  require(!parts.empty(), "ERR_SHAPE", "concat: expected at least one tensor, got none");
  Backend& device = enter("concat", parts[0]);
  const int at = parts[0].shape().index(axis);
  Shape shape = parts[0].shape();
  shape[at] = 0;
  bool any_tracked = false;
  for (const Tensor& part : parts) {
    check_beside("concat", parts[0], part);
    check_rank("concat", "every part", part, shape.rank());
    for (int i = 0; i < shape.rank(); ++i) {
      require(i == at || part.dim(i) == shape[i], "ERR_SHAPE",
              "concat: expected parts that differ along axis ", at, " only, got ", parts[0].shape(), " and ",
              part.shape());
    }
    shape[at] += part.dim(at);
    any_tracked = any_tracked || tracked(part);
  }
  const Tensor out = device.empty(shape, parts[0].dtype());
  std::vector<std::int64_t> lengths;
  std::int64_t start = 0;
  for (const Tensor& part : parts) {
    device.copy(out.narrow(at, start, part.dim(at)), part);
    start += part.dim(at);
    lengths.push_back(part.dim(at));
  }
  if (!any_tracked) return out;
  Tape::current()->record("concat", {&out, 1}, parts,
                          [lengths = std::move(lengths), at](Gradients& gradients) {
                            const Tensor dy = gradients.output();
                            std::int64_t from = 0;
                            for (std::size_t i = 0; i < lengths.size(); from += lengths[i++]) {
                              if (gradients.wanted(static_cast<int>(i)))
                                gradients.add(static_cast<int>(i), dy.narrow(at, from, lengths[i]));
                            }
                          });
  return out;
}

// One node for all parts: its gradient is one tensor, into which ops may have written their parts already.
std::vector<Tensor> split(const Tensor& x, std::span<const std::int64_t> lengths, int axis) {
  enter("split", x);
  const int at = x.shape().index(axis);
  std::vector<Tensor> parts;
  std::int64_t start = 0;
  for (const std::int64_t length : lengths) {
    parts.push_back(x.narrow(at, start, length));
    start += length;
  }
  require(start == x.dim(at), "ERR_SHAPE", "split: expected lengths that add up to ", x.dim(at), " for axis ",
          at, " of ", x.shape(), ", got ", start);
  if (!tracked(x)) return parts;
  auto gradient = [shape = x.shape(), dtype = compute_dtype(backend_of(x), x),
                   device = x.storage()->shared_device(), at,
                   sizes = std::vector<std::int64_t>(lengths.begin(), lengths.end())](Gradients& gradients) {
    auto& backend = static_cast<Backend&>(*device);
    Tensor dx = gradients.placed(0);
    if (!dx) dx = backend.empty(shape, dtype);
    std::int64_t from = 0;
    for (std::size_t i = 0; i < sizes.size(); from += sizes[i++]) {
      const Tensor part = dx.narrow(at, from, sizes[i]);
      if (!gradients.has_output(static_cast<int>(i))) {
        backend.fill(part, 0);
      } else if (const Tensor dy = gradients.output(static_cast<int>(i)); dy.address() != part.address()) {
        backend.copy(part, dy);
      }
    }
    gradients.add(0, std::move(dx));
  };
  Tape::current()->record("split", parts, {&x, 1}, std::move(gradient));
  Tape::current()->note_parts(parts, x);
  return parts;
}

Tensor upsample_nearest_2x(const Tensor& x) {
  Backend& device = enter("upsample_nearest_2x", x);
  check_rank("upsample_nearest_2x", "x [B, C, h, w]", x, 4);
  const std::int64_t B = x.dim(0), C = x.dim(1), h = x.dim(2), w = x.dim(3);
  const Tensor source = packed(x);
  const Tensor out = device.empty({B, C, 2 * h, 2 * w}, x.dtype());
  device.copy(out.view({B, C, h, 2, w, 2}), source.view({B, C, h, 1, w, 1}).expand({B, C, h, 2, w, 2}));
  if (!tracked(x)) return out;
  return recorded("upsample_nearest_2x", out, {x}, [B, C, h, w, dtype = x.dtype()](Gradients& gradients) {
    const Tensor dy = packed(gradients.output());
    Tensor dx = sum(dy.view({B, C, h, 2, w, 2}), {3, 5});
    gradients.add(0, as_dtype(dx, dtype));
  });
}

}  // namespace danceflux::ops
