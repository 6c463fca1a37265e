// Steps along a flow, with the bits of their composition of primitives. B rows, n elements each.
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/row_blocks.h"
#include "backend/cpu/row_kernels.h"

namespace danceflux::cpu {
namespace {

/// [B, n], dense.
struct FlowRows {
  std::int64_t rows, width, pieces;
  explicit FlowRows(const Tensor& x)
      : rows(x.dim(0)), width(rows ? x.numel() / rows : 0), pieces((width + kRowPiece - 1) / kRowPiece) {}
};

struct Coefficients {
  const float* base;
  std::int64_t row_step, step;
  explicit Coefficients(const Tensor& x)
      : base(x.data<float>()), row_step(x.strides()[0]), step(x.strides()[1]) {}
  float at(std::int64_t row, std::int64_t column) const { return base[row * row_step + column * step]; }
  FlowRow step_of(std::int64_t row) const { return {at(row, 0), at(row, 1), at(row, 2)}; }
  float weight(std::int64_t row) const { return at(row, 3); }
  float constant(std::int64_t row) const { return at(row, 4); }
};

/// body(row, first element of the whole, elements, piece of the whole) for every piece.
template <class Body>
void for_pieces(ThreadPool& threads, const FlowRows& flow, const Body& body) {
  for_ranges(threads, flow.rows * flow.pieces, std::min(kRowPiece, flow.width),
             [&](std::int64_t begin, std::int64_t end, int) {
               for (std::int64_t i = begin; i < end; ++i) {
                 const std::int64_t row = i / flow.pieces, first = i % flow.pieces * kRowPiece;
                 body(row, row * flow.width + first, std::min(kRowPiece, flow.width - first), i);
               }
             });
}

/// Sum of (next - mean)^2 over a piece.
double squares(const RowKernels& kernels, const float* x, const float* v, const float* next,
               const FlowRow& row, std::int64_t n) {
  float distance[kRowPiece];
  kernels.elementwise->flow_distance(distance, x, v, next, row, n);
  return kernels.reduce->row[kFoldSum](distance, n);
}

/// From the sums of a row's pieces.
void write_densities(const Tensor& log_prob, const std::vector<double>& sums, const FlowRows& flow,
                     const Coefficients& numbers) {
  for (std::int64_t row = 0; row < flow.rows; ++row) {
    double all = 0;
    for (std::int64_t i = 0; i < flow.pieces; ++i)
      all += sums[static_cast<std::size_t>(row * flow.pieces + i)];
    const auto average = static_cast<float>(all / static_cast<double>(flow.width));
    log_prob.data<float>()[row * log_prob.strides()[0]] =
        -(average * numbers.weight(row)) - numbers.constant(row);
  }
}

}  // namespace

Declined CpuBackend::flow_step(const Tensor& next, const Tensor& log_prob, const Tensor& x, const Tensor& v,
                               const Tensor& noise, const Tensor& coefficients) {
  const FlowRows flow(x);
  const Coefficients numbers(coefficients);
  const Tensor from = dense(x), velocity = dense(v), drawn = noise.defined() ? dense(noise) : noise;
  const float* const random = drawn.defined() ? drawn.data<float>() : nullptr;
  std::vector<double> sums(static_cast<std::size_t>(flow.rows * flow.pieces));
  for_pieces(threads_, flow, [&](std::int64_t row, std::int64_t at, std::int64_t n, std::int64_t piece) {
    const FlowRow step = numbers.step_of(row);
    const float *const x_piece = from.data<float>() + at, *const v_piece = velocity.data<float>() + at;
    float* const to = next.data<float>() + at;
    rows_.elementwise->flow_step(to, x_piece, v_piece, random ? random + at : nullptr, step, n);
    if (log_prob.defined())
      sums[static_cast<std::size_t>(piece)] = squares(rows_, x_piece, v_piece, to, step, n);
  });
  if (log_prob.defined()) write_densities(log_prob, sums, flow, numbers);
  return {};
}

Declined CpuBackend::flow_log_prob(const Tensor& log_prob, const Tensor& x, const Tensor& v,
                                   const Tensor& next, const Tensor& coefficients) {
  const FlowRows flow(x);
  const Coefficients numbers(coefficients);
  const Tensor from = dense(x), velocity = dense(v), to = dense(next);
  std::vector<double> sums(static_cast<std::size_t>(flow.rows * flow.pieces));
  for_pieces(threads_, flow, [&](std::int64_t row, std::int64_t at, std::int64_t n, std::int64_t piece) {
    sums[static_cast<std::size_t>(piece)] =
        squares(rows_, from.data<float>() + at, velocity.data<float>() + at, to.data<float>() + at,
                numbers.step_of(row), n);
  });
  write_densities(log_prob, sums, flow, numbers);
  return {};
}

Declined CpuBackend::flow_log_prob_backward(const Tensor& dx, const Tensor& dv, const Tensor& dlog_prob,
                                            const Tensor& x, const Tensor& v, const Tensor& next,
                                            const Tensor& coefficients) {
  const FlowRows flow(x);
  const Coefficients numbers(coefficients);
  const Tensor from = dense(x), velocity = dense(v), to = dense(next);
  const float* const above = dlog_prob.data<float>();
  const float share = 1 / static_cast<float>(flow.width);
  for_pieces(threads_, flow, [&](std::int64_t row, std::int64_t at, std::int64_t n, std::int64_t) {
    const float slope = -above[row * dlog_prob.strides()[0]] * numbers.weight(row) * share;
    rows_.elementwise->flow_backward(dx.defined() ? dx.data<float>() + at : nullptr,
                                     dv.defined() ? dv.data<float>() + at : nullptr, from.data<float>() + at,
                                     velocity.data<float>() + at, to.data<float>() + at, numbers.step_of(row),
                                     slope, n);
  });
  return {};
}

}  // namespace danceflux::cpu
