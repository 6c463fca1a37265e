// softmax over the last axis, and its backward.
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/strided.h"

namespace danceflux::cpu {
namespace {
constexpr std::int64_t kElementWork = 4;  // an exponential weighs as much as this many additions
}

void CpuBackend::softmax(const Tensor& out, const Tensor& x) {
  if (out.numel() == 0) return;
  const Tensor from = dense_rows(x);
  DenseOutput to(*this, out);
  const std::int64_t n = x.rank() ? x.dim(-1) : 1;
  const auto walk = walk_rows<2>({&to.tensor(), &from});
  float* const y = to.tensor().data<float>();
  const float* const base = from.data<float>();
  for_ranges(threads_, walk.total, n * kElementWork, [&](std::int64_t begin, std::int64_t end, int) {
    for_runs(walk, begin, end, [&](const std::array<std::int64_t, 2>& at, std::int64_t rows) {
      rows_.reduce->softmax({y + at[0], walk.inner_stride(0)}, {base + at[1], walk.inner_stride(1)}, rows, n);
    });
  });
  to.finish();
}

void CpuBackend::softmax_backward(const Tensor& dx, const Tensor& y, const Tensor& dy) {
  if (dx.numel() == 0) return;
  const Tensor probability = dense_rows(y), gradient = dense_rows(dy);
  DenseOutput to(*this, dx);
  const std::int64_t n = y.rank() ? y.dim(-1) : 1;
  const auto walk = walk_rows<3>({&to.tensor(), &probability, &gradient});
  float* const out = to.tensor().data<float>();
  const float *const y_base = probability.data<float>(), *const dy_base = gradient.data<float>();
  for_ranges(threads_, walk.total, n, [&](std::int64_t begin, std::int64_t end, int) {
    for_runs(walk, begin, end, [&](const std::array<std::int64_t, 3>& at, std::int64_t rows) {
      rows_.reduce->softmax_backward({out + at[0], walk.inner_stride(0)},
                                     {y_base + at[1], walk.inner_stride(1)},
                                     {dy_base + at[2], walk.inner_stride(2)}, rows, n);
    });
  });
  to.finish();
}

}  // namespace danceflux::cpu
