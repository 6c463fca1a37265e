// Rotary embedding, and its fusion with the RMS norm of queries and keys.
//
// Legend: B batch, L tokens, H heads, K head width; a position is one token of one batch entry.
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/row_blocks.h"
#include "backend/cpu/row_kernels.h"

namespace danceflux::cpu {
namespace {

constexpr std::int64_t kPositionsPerBlock = 16;

/// A tensor [B, L, H, K] whose last axis is dense.
struct Heads {
  float* base;
  std::int64_t batch_step, token_step, head_step, tokens;
  explicit Heads(const Tensor& x)
      : base(x.data<float>()),
        batch_step(x.strides()[0]),
        token_step(x.strides()[1]),
        head_step(x.strides()[2]),
        tokens(x.dim(1)) {}
  Rows at(std::int64_t position) const {
    return {base + position / tokens * batch_step + position % tokens * token_step, head_step};
  }
  ConstRows read(std::int64_t position) const { return {at(position).base, head_step}; }
};

/// Rows of the tables cos and sin [L, K/2], whose last axis is dense.
struct AngleTable {
  const float* base;
  std::int64_t step, tokens;
  explicit AngleTable(const Tensor& table)
      : base(table.data<float>()), step(table.strides()[0]), tokens(table.dim(0)) {}
  const float* at(std::int64_t position) const { return base + position % tokens * step; }
};

Declined check_width(std::int64_t width) {
  if (width <= kMaxHeadWidth) return {};
  return "head width " + std::to_string(width) + " is more than " + std::to_string(kMaxHeadWidth);
}

}  // namespace

void CpuBackend::rope(const Tensor& out, const Tensor& x, const Tensor& cos, const Tensor& sin,
                      bool inverse) {
  if (out.numel() == 0) return;
  const Tensor from = dense_rows(x), cos_rows = dense_rows(cos), sin_rows = dense_rows(sin);
  DenseOutput to(*this, out);
  const Heads source(from), target(to.tensor());
  const AngleTable cos_table(cos_rows), sin_table(sin_rows);
  const std::int64_t heads = x.dim(2), width = x.dim(3);
  for_ranges(threads_, x.dim(0) * x.dim(1), heads * width, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t p = begin; p < end; ++p) {
      rows_.rope->rope(target.at(p), source.read(p), heads, width, cos_table.at(p), sin_table.at(p), inverse);
    }
  });
  to.finish();
}

Declined CpuBackend::qk_norm_rope(const Tensor& out, const Tensor& rstd, const Tensor& x,
                                  const Tensor& weight, const Tensor& cos, const Tensor& sin, float eps) {
  const std::int64_t heads = x.dim(2), width = x.dim(3);
  if (auto declined = check_width(width)) return declined;
  if (out.numel() == 0) return {};
  const Tensor from = dense_rows(x), cos_rows = dense_rows(cos), sin_rows = dense_rows(sin),
               w = dense_vector(weight);
  DenseOutput to(*this, out);
  const Heads source(from), target(to.tensor());
  const AngleTable cos_table(cos_rows), sin_table(sin_rows);
  float* const rstds = rstd.data<float>();
  for_ranges(threads_, x.dim(0) * x.dim(1), heads * width * 2,
             [&](std::int64_t begin, std::int64_t end, int) {
               for (std::int64_t p = begin; p < end; ++p) {
                 rows_.rope->qk_norm_rope(target.at(p), rstds + p * heads, source.read(p), heads, width,
                                          w.data<float>(), cos_table.at(p), sin_table.at(p), eps);
               }
             });
  to.finish();
  return {};
}

Declined CpuBackend::qk_norm_rope_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dout,
                                           const Tensor& x, const Tensor& rstd, const Tensor& weight,
                                           const Tensor& cos, const Tensor& sin) {
  const std::int64_t heads = x.dim(2), width = x.dim(3), positions = x.dim(0) * x.dim(1);
  if (auto declined = check_width(width)) return declined;
  if (dx.numel() == 0) {
    if (dweight.defined()) fill(dweight, 0);
    return {};
  }
  const Tensor from = dense_rows(x), gradient = dense_rows(dout), cos_rows = dense_rows(cos),
               sin_rows = dense_rows(sin), w = dense_vector(weight);
  DenseOutput to(*this, dx);
  const Heads source(from), d(gradient), target(to.tensor());
  const AngleTable cos_table(cos_rows), sin_table(sin_rows);
  const float* const rstds = rstd.data<float>();
  const std::int64_t blocks = (positions + kPositionsPerBlock - 1) / kPositionsPerBlock;
  const Tensor parts = empty({blocks, width});
  for_tasks(threads_, blocks, positions * heads * width * 2, [&](std::int64_t block, int) {
    float* const share = parts.data<float>() + block * width;
    std::fill_n(share, width, 0.0f);
    const std::int64_t begin = block * kPositionsPerBlock;
    for (std::int64_t p = begin; p < std::min(begin + kPositionsPerBlock, positions); ++p) {
      rows_.rope->qk_norm_rope_backward(target.at(p), share, d.read(p), source.read(p), rstds + p * heads,
                                        heads, width, w.data<float>(), cos_table.at(p), sin_table.at(p));
    }
  });
  to.finish();
  sum_blocks(dweight, parts, blocks, width);
  return {};
}

}  // namespace danceflux::cpu
