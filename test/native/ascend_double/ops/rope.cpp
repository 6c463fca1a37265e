// Rotary position embedding. Mode 0 pairs channel i with i + D/2, mode 1 pairs 2i with 2i + 1 (FLUX).
#include "ascend_double/ops/dense.h"

namespace ascend_double {
namespace {

enum Mode : std::int64_t { half = 0, interleave = 1 };

struct Rope {
  Operand x, cos, sin, out;
  std::int64_t mode = 0;
};

/// The channel that is turned with channel i, and the sign of its share.
std::int64_t partner(std::int64_t i, std::int64_t width, std::int64_t mode) {
  if (mode == interleave) return i ^ 1;
  return i < width / 2 ? i + width / 2 : i - width / 2;
}
bool first_of_pair(std::int64_t i, std::int64_t width, std::int64_t mode) {
  return mode == interleave ? i % 2 == 0 : i < width / 2;
}

void check_tables(Plan& plan, const Operand& x, const Operand& cos, const Operand& sin, std::int64_t mode) {
  plan.require(mode == half || mode == interleave, "mode %lld: this chip has 0 (half) and 1 (interleave)",
               static_cast<long long>(mode));
  plan.require(x.size(3) % 2 == 0 && x.size(3) < 896, "D: expected an even number below 896, got %lld",
               static_cast<long long>(x.size(3)));
  plan.require_type(cos, "cos", x.dtype);
  plan.require_type(sin, "sin", x.dtype);
  plan.require_shape(sin, "sin", cos.shape);
  plan.require(cos.size(3) == x.size(3), "cos: expected the width of x");
  for (int axis = 0; axis < 3; ++axis)
    plan.require(cos.size(axis) == 1 || cos.size(axis) == x.size(axis), "cos %s does not broadcast to %s",
                 text_of(cos.shape).c_str(), text_of(x.shape).c_str());
  if (mode == half) {
    for (int axis = 0; axis < 3; ++axis)
      plan.require(cos.size(axis) != 1 || x.size(axis) < 1000,
                   "half mode broadcasts over less than 1000, got %s", text_of(x.shape).c_str());
    return;
  }
  // [1,1,S,D] for BNSD, [1,S,1,D] for BSND, [S,1,1,D] for SBND
  int positions = 0;
  std::int64_t others = 1;
  for (int axis = 0; axis < 3; ++axis) {
    positions += cos.size(axis) != 1;
    others *= cos.size(axis) == 1 ? x.size(axis) : 1;
  }
  plan.require(positions <= 1, "cos: interleave mode takes one axis of positions, got %s",
               text_of(cos.shape).c_str());
  plan.require(others < 1000, "B * N is %lld: interleave mode takes less than 1000",
               static_cast<long long>(others));
}

Rope plan_rope(Plan& plan, Tensor x, Tensor cos, Tensor sin, std::int64_t mode) {
  plan.require(soc().generation >= 2 && soc().generation != 310, "%s has no rotary position embedding",
               soc().name.c_str());
  Rope rope;
  rope.x = plan.in(x, "x", kFloats, 4, 4);
  rope.cos = plan.in(cos, "cos", kFloats, 4, 4);
  rope.sin = plan.in(sin, "sin", kFloats, 4, 4);
  check_tables(plan, rope.x, rope.cos, rope.sin, mode);
  // What a port once met: no refusal, finite numbers, and pictures of colour blocks.
  rope.mode = setting("DEFECT", "") == "rotary-half" ? half : mode;
  return rope;
}

}  // namespace

OP(transformer, RotaryPositionEmbedding, Tensor x, Tensor cos, Tensor sin, std::int64_t mode, Out y) {
  Rope rope = plan_rope(plan, x, cos, sin, mode);
  rope.out = plan.out(y, "out", kFloats);
  plan.require_shape(rope.out, "out", rope.x.shape);
  plan.require_type(rope.out, "out", rope.x.dtype);
  plan.compute = [=](const Launch& launch) {
    const Dims& shape = rope.x.shape;
    const std::int64_t width = shape[3];
    const Dense<float> in = load<float>(launch, rope.x), c = load_broadcast<float>(launch, rope.cos, shape);
    const Dense<float> s = load_broadcast<float>(launch, rope.sin, shape);
    Dense<float> out(in.count());
    for (std::int64_t at = 0; at < in.count(); ++at) {
      const std::int64_t i = at % width, other = at - i + partner(i, width, rope.mode);
      const float turned = first_of_pair(i, width, rope.mode) ? -in[other] : in[other];
      out[at] = in[at] * c[at] + turned * s[at];
    }
    store(launch, rope.out, out);
  };
}

// dx = dy cos + turned back(dy sin); dcos and dsin, where x is given, are sums over the axes that cos was
// broadcast along.
OP(transformer, RotaryPositionEmbeddingGrad, Tensor dy, Tensor cos, Tensor sin, Tensor x, std::int64_t mode,
   Out dx, Out dcos, Out dsin) {
  Rope rope = plan_rope(plan, dy, cos, sin, mode);
  const Operand forward = plan.optional(x, "xOptional", kFloats, 4, 4);
  rope.out = plan.out(dx, "dxOut", kFloats);
  const Operand to_cos = plan.out(dcos, "dcosOut", kFloats), to_sin = plan.out(dsin, "dsinOut", kFloats);
  plan.require_shape(rope.out, "dxOut", rope.x.shape);
  plan.require_type(rope.out, "dxOut", rope.x.dtype);
  if (forward) {
    plan.require_shape(forward, "xOptional", rope.x.shape);
    plan.require_shape(to_cos, "dcosOut", rope.cos.shape);
    plan.require_shape(to_sin, "dsinOut", rope.cos.shape);
    plan.require(
        mode != half || rope.x.count() / (rope.x.size(3) * rope.cos.count() / rope.cos.size(3)) <= 1024,
        "B * N above 1024 with dcos and dsin in half mode");
  }
  plan.compute = [=](const Launch& launch) {
    const Dims& shape = rope.x.shape;
    const std::int64_t width = shape[3];
    const Dense<float> slope = load<float>(launch, rope.x),
                       c = load_broadcast<float>(launch, rope.cos, shape);
    const Dense<float> s = load_broadcast<float>(launch, rope.sin, shape);
    Dense<float> out(slope.count());
    for (std::int64_t at = 0; at < slope.count(); ++at) {
      const std::int64_t i = at % width, other = at - i + partner(i, width, rope.mode);
      const float share = slope[other] * s[other];
      out[at] = slope[at] * c[at] + (first_of_pair(i, width, rope.mode) ? share : -share);
    }
    store(launch, rope.out, out);
    if (!forward) return;
    const Dense<float> in = load<float>(launch, forward);
    Dense<float> sums_cos(rope.cos.count()), sums_sin(rope.cos.count());
    std::fill(sums_cos.data(), sums_cos.data() + sums_cos.count(), 0.0f);
    std::fill(sums_sin.data(), sums_sin.data() + sums_sin.count(), 0.0f);
    Operand dense = rope.cos;
    dense.strides = contiguous_strides(dense.shape);
    const Dims steps = broadcast_strides(dense, shape);
    each_run(
        shape, steps, [&](std::int64_t first, std::int64_t offset, std::int64_t length, std::int64_t stride) {
          for (std::int64_t n = 0; n < length; ++n) {
            const std::int64_t at = first + n, i = at % width, other = at - i + partner(i, width, rope.mode);
            sums_cos[offset + n * stride] += slope[at] * in[at];
            sums_sin[offset + n * stride] +=
                slope[at] * (first_of_pair(i, width, rope.mode) ? -in[other] : in[other]);
          }
        });
    store(launch, to_cos, sums_cos);
    store(launch, to_sin, sums_sin);
  };
}

}  // namespace ascend_double
