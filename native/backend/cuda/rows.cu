// Rows of a table by their number. V vocabulary, D width, N ids.
#include "backend/cuda/cuda_backend.h"
#include "core/error.h"

namespace danceflux::cuda {
namespace {

constexpr int kThreads = 256;

struct Table {
  std::int64_t rows, width, row_step, step;
};

template <class To, class From>
__global__ void gather(To* out, std::int64_t out_row_step, std::int64_t out_step, const From* table,
                       Table layout, const std::int32_t* ids) {
  const std::int64_t i = std::int64_t{blockIdx.y} * kThreads + threadIdx.x, row = blockIdx.x;
  if (i >= layout.width) return;
  out[row * out_row_step + i * out_step] =
      narrow_to<To>(widen(table[ids[row] * layout.row_step + i * layout.step]));
}

/// One thread owns a column and goes through the ids in their order, so that ids that meet are added in that
/// order.
template <class T>
__global__ void scatter_add(float* table, Table layout, const T* rows, std::int64_t row_step,
                            std::int64_t step, const std::int32_t* ids, std::int64_t count) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= layout.width) return;
  for (std::int64_t n = 0; n < count; ++n)
    table[ids[n] * layout.row_step + i * layout.step] += widen(rows[n * row_step + i * step]);
}

Table layout_of_table(const Tensor& x) { return {x.dim(0), x.dim(1), x.strides()[0], x.strides()[1]}; }

}  // namespace

void CudaBackend::gather_rows(const Tensor& out, const Tensor& table, const Tensor& ids) {
  enter("gather_rows");
  if (out.numel() == 0) return;
  const Grid grid{
      .x = static_cast<unsigned>(ids.numel()), .y = blocks_for(table.dim(1), kThreads), .threads = kThreads};
  with_activation("gather_rows", out.dtype(), [&](auto to) {
    with_stored("gather_rows", table.dtype(), [&](auto from) {
      using To = decltype(to);
      using From = decltype(from);
      launch(grid, gather<To, From>, out.data<To>(), out.strides()[0], out.strides()[1], table.data<From>(),
             layout_of_table(table), ids.data<std::int32_t>());
    });
  });
}

void CudaBackend::scatter_add_rows(const Tensor& table, const Tensor& rows, const Tensor& ids) {
  enter("scatter_add_rows");
  if (rows.numel() == 0) return;
  require(table.dtype() == DType::f32, "ERR_DTYPE", "scatter_add_rows: expected a table in f32, got ",
          name_of(table.dtype()));
  with_activation("scatter_add_rows", rows.dtype(), [&](auto type) {
    using T = decltype(type);
    launch({.x = blocks_for(table.dim(1), kThreads), .threads = kThreads}, scatter_add<T>,
           table.data<float>(), layout_of_table(table), rows.data<T>(), rows.strides()[0], rows.strides()[1],
           ids.data<std::int32_t>(), ids.numel());
  });
}

}  // namespace danceflux::cuda
