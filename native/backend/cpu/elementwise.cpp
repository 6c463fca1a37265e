// fill, unary and binary.
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/strided.h"

namespace danceflux::cpu {
namespace {

// The kernel tables are in the order of the contract's enumerations.
enum UnaryRow {
#define DF_NAME(op) unary_##op,
  DANCEFLUX_UNARY_OPS(DF_NAME)
#undef DF_NAME
};
#define DF_SAME(op) static_assert(static_cast<int>(UnaryOp::op) == static_cast<int>(unary_##op));
DANCEFLUX_UNARY_OPS(DF_SAME)
#undef DF_SAME
enum BinaryRow {
#define DF_NAME(op) binary_##op,
  DANCEFLUX_BINARY_OPS(DF_NAME)
#undef DF_NAME
};
#define DF_SAME(op) static_assert(static_cast<int>(BinaryOp::op) == static_cast<int>(binary_##op));
DANCEFLUX_BINARY_OPS(DF_SAME)
#undef DF_SAME

/// `dense` fills a dense run.
template <class T, class Dense>
void fill_elements(ThreadPool& threads, const Tensor& out, T value, const Dense& dense) {
  const auto walk = walk_elements<1>({&out});
  T* base = out.data<T>();
  const std::int64_t step = walk.inner_stride(0);
  for_ranges(threads, walk.total, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for_runs(walk, begin, end, [&](const std::array<std::int64_t, 1>& offset, std::int64_t count) {
      T* at = base + offset[0];
      if (step == 1) {
        dense(at, count);
      } else {
        for (std::int64_t i = 0; i < count; ++i) at[i * step] = value;
      }
    });
  });
}

template <class T>
void fill_elements(ThreadPool& threads, const Tensor& out, T value) {
  fill_elements(threads, out, value, [value](T* at, std::int64_t count) { std::fill_n(at, count, value); });
}

}  // namespace

void CpuBackend::fill(const Tensor& out, float value) {
  switch (out.dtype()) {
    case DType::f32:
      return fill_elements(threads_, out, value,
                           [&](float* at, std::int64_t n) { rows_.elementwise->fill(at, value, n); });
    case DType::bf16:
      return fill_elements(threads_, out, f32_to_bf16(value));
    case DType::f16:
      return fill_elements(threads_, out, f32_to_f16(value));
    case DType::f64:
      return fill_elements(threads_, out, static_cast<double>(value));
    case DType::i32:
      return fill_elements(threads_, out, static_cast<std::int32_t>(value));
    case DType::i64:
      return fill_elements(threads_, out, static_cast<std::int64_t>(value));
    case DType::u8:
      return fill_elements(threads_, out, static_cast<std::uint8_t>(value));
  }
}

void CpuBackend::unary(UnaryOp op, const Tensor& out, const Tensor& x, float a, float b) {
  const auto kernel = rows_.elementwise->unary[static_cast<std::size_t>(op)];
  const std::array<const Tensor*, 2> tensors{&out, &x};
  run_elementwise<2>(threads_, walk_elements<2>(tensors), 0, tensors,
                     [&](const std::array<float*, 2>& at, std::int64_t n) { kernel(at[0], at[1], n, a, b); });
}

void CpuBackend::unary_backward(UnaryOp op, const Tensor& dx, const Tensor& x, const Tensor& dy, float a,
                                float b) {
  const auto kernel = rows_.elementwise->unary_backward[static_cast<std::size_t>(op)];
  const std::array<const Tensor*, 3> tensors{&dx, &x, &dy};
  run_elementwise<3>(
      threads_, walk_elements<3>(tensors), 0, tensors,
      [&](const std::array<float*, 3>& at, std::int64_t n) { kernel(at[0], at[1], at[2], n, a, b); });
}

void CpuBackend::binary(BinaryOp op, const Tensor& out, const Tensor& a, const Tensor& b, float b_scale) {
  const std::array<const Tensor*, 3> tensors{&out, &a, &b};
  const auto walk = walk_elements<3>(tensors);
  const RowOperands operands = walk.inner_stride(2) == 0   ? kScalarB
                               : walk.inner_stride(1) == 0 ? kScalarA
                                                           : kBothRows;
  const unsigned scalars = operands == kScalarB ? 4u : operands == kScalarA ? 2u : 0u;
  const auto kernel = rows_.elementwise->binary[static_cast<std::size_t>(op)][operands];
  run_elementwise<3>(threads_, walk, scalars, tensors, [&](const std::array<float*, 3>& at, std::int64_t n) {
    kernel(at[0], at[1], at[2], n, b_scale);
  });
}

}  // namespace danceflux::cpu
