// Shortcuts around the residual stream: modulated norm and gated residual, with their backwards. Each gives
// the bits of its composition of primitives in the forward direction.
//
// Legend: B batch, L tokens, D width.
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/row_blocks.h"
#include "backend/cpu/row_kernels.h"

namespace danceflux::cpu {
namespace {

/// A vector per batch entry [B, D], last axis dense, and rows x [B, L, D], last axis dense.
struct BatchRows {
  float* base;
  std::int64_t batch_step, row_step;
  explicit BatchRows(const Tensor& x)
      : base(x.data<float>()), batch_step(x.strides()[0]), row_step(x.rank() > 2 ? x.strides()[1] : 0) {}
  float* at(std::int64_t batch, std::int64_t row = 0) const {
    return base + batch * batch_step + row * row_step;
  }
  Rows rows(std::int64_t batch, std::int64_t row) const { return {at(batch, row), row_step}; }
  ConstRows const_rows(std::int64_t batch, std::int64_t row) const { return {at(batch, row), row_step}; }
};

/// body(batch, first token, tokens) over all tokens, cut where the batch entry ends and wherever threads
/// like.
template <class Body>
void for_token_runs(ThreadPool& threads, const Tensor& x, std::int64_t work, const Body& body) {
  const std::int64_t tokens = x.dim(1);
  for_ranges(threads, x.dim(0) * tokens, work, [&](std::int64_t begin, std::int64_t end, int) {
    while (begin < end) {
      const std::int64_t token = begin % tokens, count = std::min(tokens - token, end - begin);
      body(begin / tokens, token, count);
      begin += count;
    }
  });
}

/// body(batch, first token, tokens, block) over fixed blocks of each batch entry's tokens.
template <class Body>
void for_token_blocks(ThreadPool& threads, const Tensor& x, const Body& body) {
  const std::int64_t tokens = x.dim(1), blocks = block_count(tokens);
  for_tasks(threads, x.dim(0) * blocks, x.numel() * 2, [&](std::int64_t task, int) {
    const std::int64_t first = task % blocks * kRowsPerBlock;
    body(task / blocks, first, std::min(kRowsPerBlock, tokens - first), task);
  });
}

}  // namespace

Tensor CpuBackend::one_plus(const Tensor& scale) {
  const Tensor result = empty(scale.shape());
  unary(UnaryOp::affine, result, scale, 1, 1);
  return result;
}

void CpuBackend::sum_token_blocks(const Tensor& out, const Tensor& parts, std::int64_t blocks) {
  DenseOutput to(*this, out);
  const BatchRows target(to.tensor());
  const std::int64_t width = out.dim(1);
  for_ranges(threads_, out.dim(0), blocks * width, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t batch = begin; batch < end; ++batch) {
      combine_blocks(target.at(batch), parts.data<float>() + batch * blocks * width, width, blocks, width);
    }
  });
  to.finish();
}

Declined CpuBackend::modulated_norm(const Tensor& out, const Tensor& mean, const Tensor& rstd,
                                    const Tensor& x, const Tensor& scale, const Tensor& shift, float eps) {
  if (x.numel() == 0) return {};
  const Tensor from = dense_rows(x), weight = one_plus(scale), bias = dense_rows(shift);
  DenseOutput to(*this, out);
  const BatchRows source(from), target(to.tensor()), weights(weight), biases(bias);
  const std::int64_t tokens = x.dim(1), width = x.dim(2);
  float *const means = mean.data<float>(), *const rstds = rstd.data<float>();
  for_token_runs(threads_, x, width * 2, [&](std::int64_t batch, std::int64_t token, std::int64_t count) {
    const std::int64_t row = batch * tokens + token;
    rows_.norm->layer(target.rows(batch, token), means + row, rstds + row, source.const_rows(batch, token),
                      count, width, weights.at(batch), biases.at(batch), eps);
  });
  to.finish();
  return {};
}

Declined CpuBackend::modulated_norm_backward(const Tensor& dx, const Tensor& dscale, const Tensor& dshift,
                                             const Tensor& dy, const Tensor& x, const Tensor& mean,
                                             const Tensor& rstd, const Tensor& scale) {
  if (x.numel() == 0) {
    if (dscale.defined()) fill(dscale, 0);
    if (dshift.defined()) fill(dshift, 0);
    return {};
  }
  const Tensor from = dense_rows(x), gradient = dense_rows(dy), weight = one_plus(scale);
  DenseOutput to(*this, dx);
  const BatchRows source(from), d(gradient), target(to.tensor()), weights(weight);
  const std::int64_t batch_size = x.dim(0), tokens = x.dim(1), width = x.dim(2), blocks = block_count(tokens);
  const Tensor scale_parts = empty({batch_size * blocks, width}),
               shift_parts = empty({batch_size * blocks, width});
  const float *const means = mean.data<float>(), *const rstds = rstd.data<float>();
  for_token_blocks(threads_, x,
                   [&](std::int64_t batch, std::int64_t first, std::int64_t count, std::int64_t block) {
                     float* const scale_share = scale_parts.data<float>() + block * width;
                     float* const shift_share = shift_parts.data<float>() + block * width;
                     std::fill_n(scale_share, width, 0.0f);
                     std::fill_n(shift_share, width, 0.0f);
                     const std::int64_t row = batch * tokens + first;
                     rows_.norm->backward(target.rows(batch, first), scale_share, shift_share,
                                          d.const_rows(batch, first), source.const_rows(batch, first), count,
                                          width, means + row, rstds + row, weights.at(batch));
                   });
  to.finish();
  if (dscale.defined()) sum_token_blocks(dscale, scale_parts, blocks);
  if (dshift.defined()) sum_token_blocks(dshift, shift_parts, blocks);
  return {};
}

Declined CpuBackend::gated_residual(const Tensor& out, const Tensor& x, const Tensor& gate, const Tensor& y) {
  if (x.numel() == 0) return {};
  const Tensor residual = dense_rows(x), branch = dense_rows(y), gates = dense_rows(gate);
  DenseOutput to(*this, out);
  const BatchRows x_rows(residual), y_rows(branch), gate_rows(gates), target(to.tensor());
  const std::int64_t width = x.dim(2);
  for_token_runs(threads_, x, width, [&](std::int64_t batch, std::int64_t first, std::int64_t count) {
    for (std::int64_t token = first; token < first + count; ++token) {
      rows_.elementwise->gated_add(target.at(batch, token), x_rows.at(batch, token), gate_rows.at(batch),
                                   y_rows.at(batch, token), width);
    }
  });
  to.finish();
  return {};
}

Declined CpuBackend::gated_residual_backward(const Tensor& dgate, const Tensor& dy, const Tensor& dout,
                                             const Tensor& gate, const Tensor& y) {
  if (y.numel() == 0) {
    if (dgate.defined()) fill(dgate, 0);
    return {};
  }
  const Tensor gradient = dense_rows(dout), branch = dense_rows(y), gates = dense_rows(gate);
  DenseOutput to(*this, dy);
  const BatchRows d(gradient), y_rows(branch), gate_rows(gates), target(to.tensor());
  const std::int64_t width = y.dim(2), blocks = block_count(y.dim(1));
  const Tensor parts = empty({y.dim(0) * blocks, width});
  for_token_blocks(threads_, y,
                   [&](std::int64_t batch, std::int64_t first, std::int64_t count, std::int64_t block) {
                     float* const share = parts.data<float>() + block * width;
                     std::fill_n(share, width, 0.0f);
                     rows_.elementwise->gated_add_backward(share, target.rows(batch, first),
                                                           d.const_rows(batch, first), gate_rows.at(batch),
                                                           y_rows.const_rows(batch, first), count, width);
                   });
  to.finish();
  if (dgate.defined()) sum_token_blocks(dgate, parts, blocks);
  return {};
}

}  // namespace danceflux::cpu
