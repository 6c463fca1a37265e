// Rows of tables by index. A negative index is an aicore exception; one that is too large reads garbage,
// without a word.
#include "ascend_double/ops/dense.h"

namespace ascend_double {
namespace {

struct Along {
  std::int64_t outer = 1, size = 0, inner = 1;
};
Along along(const Operand& operand, int axis) {
  Along a;
  a.size = operand.size(axis);
  for (int i = 0; i < axis; ++i) a.outer *= operand.size(i);
  for (int i = axis + 1; i < operand.rank(); ++i) a.inner *= operand.size(i);
  return a;
}

Dense<std::int64_t> checked_indices(const Launch& launch, const Operand& ids) {
  Dense<std::int64_t> indices = load<std::int64_t>(launch, ids);
  for (std::int64_t i = 0; i < indices.count(); ++i)
    if (indices[i] < 0)
      refuse(ACL_ERROR_RT_AICORE_EXCEPTION, "index %lld is negative", static_cast<long long>(indices[i]));
  return indices;
}

bool too_large(std::int64_t index, std::int64_t size) {
  if (index < size) return false;
  violation("index %lld of %lld reads or writes garbage", static_cast<long long>(index),
            static_cast<long long>(size));
  return true;
}

void run_gather(const Launch& launch, const Operand& table, int axis, const Operand& ids,
                const Operand& out) {
  const Along a = along(table, axis);
  const Dense<std::int64_t> indices = checked_indices(launch, ids);
  const Dense<float> values = load<float>(launch, table);
  Dense<float> result(out.count());
  for (std::int64_t o = 0; o < a.outer; ++o)
    for (std::int64_t i = 0; i < indices.count(); ++i) {
      float* to = result.data() + (o * indices.count() + i) * a.inner;
      const bool garbage = too_large(indices[i], a.size);
      for (std::int64_t k = 0; k < a.inner; ++k)
        to[k] = garbage ? 1.5e9f : values[(o * a.size + indices[i]) * a.inner + k];
    }
  store(launch, out, result);
}

void plan_gather(Plan& plan, const Operand& table, std::int64_t dim, const Operand& ids, const Operand& out) {
  const int axis = plan.axis(dim, table.rank());
  plan.require_type(out, "out", table.dtype);
  Dims shape(table.shape.begin(), table.shape.begin() + axis);
  shape.insert(shape.end(), ids.shape.begin(), ids.shape.end());
  shape.insert(shape.end(), table.shape.begin() + axis + 1, table.shape.end());
  plan.require_shape(out, "out", shape);
  plan.compute = [=](const Launch& launch) { run_gather(launch, table, axis, ids, out); };
}

/// out = self, then out[index] += alpha * source along an axis; in the order of the indices, or in any.
struct Scatter {
  Operand self, ids, source, out;
  Along a;
  float alpha = 1;
  bool fixed = true, accumulate = true;
};

void run_scatter(const Launch& launch, const Scatter& s) {
  const Dense<std::int64_t> indices = checked_indices(launch, s.ids);
  const Dense<float> self = load<float>(launch, s.self), source = load<float>(launch, s.source);
  Dense<float> result(self.count());
  std::copy(self.data(), self.data() + self.count(), result.data());
  const std::int64_t count = indices.count();
  const std::int64_t start =
      s.fixed || !count ? 0 : static_cast<std::int64_t>(launch.chance % static_cast<std::uint64_t>(count));
  for (std::int64_t o = 0; o < s.a.outer; ++o)
    for (std::int64_t n = 0; n < count; ++n) {
      const std::int64_t i = (n + start) % count;
      if (too_large(indices[i], s.a.size)) continue;
      float* to = result.data() + (o * s.a.size + indices[i]) * s.a.inner;
      const float* from = source.data() + (o * count + i) * s.a.inner;
      for (std::int64_t k = 0; k < s.a.inner; ++k) to[k] = (s.accumulate ? to[k] : 0) + s.alpha * from[k];
    }
  store(launch, s.out, result);
}

}  // namespace

OP(nn, Embedding, Tensor table, Tensor ids, Tensor out) {
  const Operand weight = plan.in(table, "weight", kNumbers, 2, 2),
                indices = plan.in(ids, "indices", kIndices);
  plan_gather(plan, weight, 0, indices, plan.out(out, "out", kNumbers));
}

OP(nn, IndexSelect, Tensor x, std::int64_t dim, Tensor ids, Out y) {
  const Operand in = plan.in(x, "self", kNumbers, 1), indices = plan.in(ids, "index", kIndices, 0, 1);
  plan_gather(plan, in, dim, indices, plan.out(y, "out", kNumbers));
}
OP(nn, GatherV2, Tensor x, std::int64_t dim, Tensor ids, Out y) {
  const Operand in = plan.in(x, "self", kNumbers, 1), indices = plan.in(ids, "index", kIndices);
  plan_gather(plan, in, dim, indices, plan.out(y, "out", kNumbers));
}

// Element by element: out[i][j] = x[index[i][j]][j] for dim 0.
OP(nn, Gather, Tensor x, std::int64_t dim, Tensor ids, Out y) {
  const Operand in = plan.in(x, "self", kNumbers, 1), index = plan.in(ids, "index", kIndices);
  const Operand out = plan.out(y, "out", kNumbers);
  const int axis = plan.axis(dim, in.rank());
  plan.require(index.rank() == in.rank(), "index: expected the rank of self");
  plan.require_shape(out, "out", index.shape);
  plan.require_type(out, "out", in.dtype);
  for (int i = 0; i < in.rank(); ++i)
    plan.require(i == axis || index.size(i) <= in.size(i), "index is larger than self");
  plan.compute = [=](const Launch& launch) {
    const Dense<float> values = load<float>(launch, in);
    const Dense<std::int64_t> indices = checked_indices(launch, index);
    const Dims strides = contiguous_strides(in.shape), own = contiguous_strides(index.shape);
    Dense<float> result(index.count());
    for (std::int64_t at = 0; at < index.count(); ++at) {
      std::int64_t from = 0;
      for (int i = 0; i < in.rank(); ++i) {
        const auto k = static_cast<std::size_t>(i);
        from += (i == axis ? indices[at] : at / own[k] % index.shape[k]) * strides[k];
      }
      result[at] = too_large(indices[at], in.size(axis)) ? 1.5e9f : values[from];
    }
    store(launch, out, result);
  };
}

// Gradients of a table, summed in the order of the indices if asked to be deterministic; row pad stays zero.
OP(nn, EmbeddingDenseBackward, Tensor gradient, Tensor ids, std::uint64_t rows, std::uint64_t pad,
   bool scale_by_frequency, Tensor out) {
  const Operand dy = plan.in(gradient, "grad", kFloats, 1), indices = plan.in(ids, "indices", kIndices);
  const Operand dtable = plan.out(out, "out", kFloats, 2, 2);
  const std::int64_t width = dy.size(-1);
  plan.require_shape(dtable, "out", {static_cast<std::int64_t>(rows), width});
  plan.require_type(dtable, "out", dy.dtype);
  plan.require(dy.count() == indices.count() * width, "grad %s for indices %s", text_of(dy.shape).c_str(),
               text_of(indices.shape).c_str());
  plan.require(!scale_by_frequency, "the double does not scale by frequency");
  const bool fixed = plan.deterministic;
  plan.compute = [=](const Launch& launch) {
    const Dense<std::int64_t> at = checked_indices(launch, indices);
    const Dense<float> slopes = load<float>(launch, dy);
    Dense<float> sums(dtable.count());
    std::fill(sums.data(), sums.data() + sums.count(), 0.0f);
    const std::int64_t count = at.count();
    const std::int64_t start =
        fixed || !count ? 0 : static_cast<std::int64_t>(launch.chance % static_cast<std::uint64_t>(count));
    for (std::int64_t n = 0; n < count; ++n) {
      const std::int64_t i = (n + start) % count;
      if (at[i] == static_cast<std::int64_t>(pad) || too_large(at[i], static_cast<std::int64_t>(rows)))
        continue;
      for (std::int64_t k = 0; k < width; ++k) sums[at[i] * width + k] += slopes[i * width + k];
    }
    store(launch, dtable, sums);
  };
}

OP(nn, IndexAdd, Tensor self, std::int64_t dim, Tensor ids, Tensor source, Scalar alpha, Out out) {
  Scatter s;
  s.self = plan.in(self, "self", kNumbers, 1);
  const int axis = plan.axis(dim, s.self.rank());
  s.ids = plan.in(ids, "index", kIndices, 1, 1);
  s.source = plan.in(source, "source", kNumbers, 1);
  s.alpha = static_cast<float>(plan.scalar(alpha, "alpha").real);
  s.out = plan.out(out, "out", kNumbers);
  plan.require_type(s.source, "source", s.self.dtype);
  plan.require_type(s.out, "out", s.self.dtype);
  plan.require_shape(s.out, "out", s.self.shape);
  Dims shape = s.self.shape;
  shape[static_cast<std::size_t>(axis)] = s.ids.count();
  plan.require_shape(s.source, "source", shape);
  s.a = along(s.self, axis);
  s.fixed = plan.deterministic;
  plan.compute = [=](const Launch& launch) { run_scatter(launch, s); };
}

OP(nn, IndexPutImpl, Out self, List indices, Tensor values, bool accumulate, bool /*unsafe*/) {
  Scatter s;
  s.self = plan.in(self, "selfRef", kNumbers, 1);
  const std::vector<Operand> ids = plan.in(indices, "indices", kIndices);
  plan.require(ids.size() == 1 && ids[0].rank() == 1, "the double indexes the first axis by one list");
  s.ids = ids[0];
  s.source = plan.in(values, "values", kNumbers);
  s.out = plan.out(self, "selfRef", kNumbers);
  plan.require_type(s.source, "values", s.self.dtype);
  Dims shape = s.self.shape;
  shape[0] = s.ids.count();
  plan.require_shape(s.source, "values", shape);
  s.a = along(s.self, 0);
  s.accumulate = accumulate;
  s.fixed = plan.deterministic || !accumulate;
  plan.compute = [=](const Launch& launch) { run_scatter(launch, s); };
}

// Element by element: out[index[i][j]][j] += src[i][j] for dim 0.
OP(nn, ScatterAdd, Tensor self, std::int64_t dim, Tensor ids, Tensor source, Out out) {
  const Operand in = plan.in(self, "self", kNumbers, 1), index = plan.in(ids, "index", kIndices);
  const Operand more = plan.in(source, "src", kNumbers), to = plan.out(out, "out", kNumbers);
  const int axis = plan.axis(dim, in.rank());
  plan.require(index.rank() == in.rank(), "index: expected the rank of self");
  plan.require_shape(more, "src", index.shape);
  plan.require_shape(to, "out", in.shape);
  plan.require_type(more, "src", in.dtype);
  plan.require_type(to, "out", in.dtype);
  plan.compute = [=](const Launch& launch) {
    const Dense<float> values = load<float>(launch, in), terms = load<float>(launch, more);
    const Dense<std::int64_t> indices = checked_indices(launch, index);
    const Dims strides = contiguous_strides(in.shape), own = contiguous_strides(index.shape);
    Dense<float> result(values.count());
    std::copy(values.data(), values.data() + values.count(), result.data());
    for (std::int64_t at = 0; at < index.count(); ++at) {
      if (too_large(indices[at], in.size(axis))) continue;
      std::int64_t place = 0;
      for (int i = 0; i < in.rank(); ++i) {
        const auto k = static_cast<std::size_t>(i);
        place += (i == axis ? indices[at] : at / own[k] % index.shape[k]) * strides[k];
      }
      result[place] += terms[at];
    }
    store(launch, to, result);
  };
}

}  // namespace ascend_double
