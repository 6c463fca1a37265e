// Rows of tables by number: gather, and scatter-add in the order of the rows.
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/strided.h"

namespace danceflux::cpu {

void CpuBackend::gather_rows(const Tensor& out, const Tensor& table, const Tensor& ids) {
  if (out.numel() == 0) return;
  const Tensor from = dense_rows(table);
  DenseOutput to(*this, out);
  const auto convert =
      rows_.convert->convert[static_cast<std::size_t>(out.dtype())][static_cast<std::size_t>(table.dtype())];
  const std::int64_t width = out.dim(1), id_step = ids.strides()[0], out_step = to.tensor().strides()[0];
  const std::int64_t row_bytes = from.strides()[0] * static_cast<std::int64_t>(size_of(table.dtype()));
  const auto* numbers = ids.data<std::int32_t>();
  const char* base = from.data<char>();
  float* const target = to.tensor().data<float>();
  for_ranges(threads_, out.dim(0), width, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i)
      convert(target + i * out_step, base + numbers[i * id_step] * row_bytes, width);
  });
  to.finish();
}

void CpuBackend::scatter_add_rows(const Tensor& table, const Tensor& rows, const Tensor& ids) {
  if (rows.numel() == 0) return;
  constexpr std::int64_t kColumns = 256;  // tasks own columns, so that each table row sees its rows in order
  const Tensor from = dense_rows(rows);
  DenseOutput to(*this, table, DenseOutput::kUpdate);
  const auto add = rows_.elementwise->binary[static_cast<std::size_t>(BinaryOp::add)][kBothRows];
  const std::int64_t count = rows.dim(0), width = rows.dim(1), row_step = from.strides()[0];
  const std::int64_t table_step = to.tensor().strides()[0], id_step = ids.strides()[0];
  const auto* numbers = ids.data<std::int32_t>();
  float* const target = to.tensor().data<float>();
  const float* const source = from.data<float>();
  for_tasks(threads_, (width + kColumns - 1) / kColumns, count * width, [&](std::int64_t task, int) {
    const std::int64_t first = task * kColumns, n = std::min(kColumns, width - first);
    for (std::int64_t i = 0; i < count; ++i) {
      float* const row = target + numbers[i * id_step] * table_step + first;
      add(row, row, source + i * row_step + first, n, 1.0f);
    }
  });
  to.finish();
}

}  // namespace danceflux::cpu
