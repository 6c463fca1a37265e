// copy: any strides, any pair of float types. One type goes by element size; two types are converted along
// dense runs.
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/strided.h"

namespace danceflux::cpu {
namespace {

/// Runs shorter than this are moved by a plain loop over two axes: a call for each would cost more than it
/// moves.
constexpr std::int64_t kShortRun = 16;

int size_index(std::size_t bytes) { return bytes == 1 ? 0 : bytes == 2 ? 1 : bytes == 4 ? 2 : 3; }

struct CopyJob {
  ThreadPool& threads;
  const ConvertRows& kernels;
  const Walk<2>& walk;
  char* out;
  const char* x;
  std::size_t out_size, x_size;
};

/// Both dense along the innermost axis.
void copy_runs(const CopyJob& job, DType to, DType from) {
  const auto convert = job.kernels.convert[static_cast<std::size_t>(to)];
  for_ranges(job.threads, job.walk.total, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for_runs(job.walk, begin, end, [&](const std::array<std::int64_t, 2>& offset, std::int64_t count) {
      char* at = job.out + offset[0] * static_cast<std::int64_t>(job.out_size);
      const char* source = job.x + offset[1] * static_cast<std::int64_t>(job.x_size);
      if (to == from) {
        std::memcpy(at, source, static_cast<std::size_t>(count) * job.out_size);
      } else {
        convert[static_cast<std::size_t>(from)](at, source, count);
      }
    });
  });
}

/// The innermost two axes of `walk` as one loop, the rest walked.
template <class T>
void copy_planes(const CopyJob& job) {
  Walk<2> outer = job.walk;
  std::int64_t rows = 1, row_out = 0, row_x = 0;
  const std::int64_t columns = outer.inner(), step_out = outer.inner_stride(0),
                     step_x = outer.inner_stride(1);
  outer.rank -= 1;
  outer.total /= std::max<std::int64_t>(columns, 1);
  if (outer.rank > 0) {
    rows = outer.inner(), row_out = outer.inner_stride(0), row_x = outer.inner_stride(1);
    outer.rank -= 1;
    outer.total /= std::max<std::int64_t>(rows, 1);
  }
  if (outer.rank == 0) outer.merge();
  T* out = reinterpret_cast<T*>(job.out);
  const T* x = reinterpret_cast<const T*>(job.x);
  const std::int64_t total = outer.total * rows;  // items are rows, so that one big plane is shared out too
  for_ranges(job.threads, total, columns, [&](std::int64_t begin, std::int64_t end, int) {
    while (begin < end) {
      const std::int64_t first = begin % rows, count = std::min(rows - first, end - begin);
      for_items(outer, begin / rows, begin / rows + 1,
                [&](std::int64_t, const std::array<std::int64_t, 2>& offset) {
                  for (std::int64_t i = first; i < first + count; ++i) {
                    T* to = out + offset[0] + i * row_out;
                    const T* from = x + offset[1] + i * row_x;
                    for (std::int64_t j = 0; j < columns; ++j) to[j * step_out] = from[j * step_x];
                  }
                });
      begin += count;
    }
  });
}

/// The axis along which x is dense while out is dense along the innermost; -1 when there is none.
int crossed_axis(const Walk<2>& walk) {
  if (walk.inner_stride(0) != 1 || walk.inner_stride(1) == 1 || walk.inner() < 4) return -1;
  for (int axis = 0; axis + 1 < walk.rank; ++axis) {
    const auto a = static_cast<std::size_t>(axis);
    if (walk.stride[1][a] == 1 && walk.size[a] >= 4) return axis;
  }
  return -1;
}

void copy_crossed(const CopyJob& job, int axis) {
  constexpr std::int64_t kRows = 32;  // of out per task
  const auto a = static_cast<std::size_t>(axis);
  Walk<2> outer;
  for (int i = 0; i + 1 < job.walk.rank; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (i != axis) outer.push(job.walk.size[at], {job.walk.stride[0][at], job.walk.stride[1][at]});
  }
  outer.merge();
  const auto transpose = job.kernels.transpose[size_index(job.out_size)];
  const std::int64_t rows = job.walk.size[a], columns = job.walk.inner(), bands = (rows + kRows - 1) / kRows;
  const std::int64_t out_step = job.walk.stride[0][a], x_step = job.walk.inner_stride(1);
  const auto bytes = static_cast<std::int64_t>(job.out_size);
  for_ranges(job.threads, outer.total * bands, kRows * columns,
             [&](std::int64_t begin, std::int64_t end, int) {
               for (std::int64_t item = begin; item < end; ++item) {
                 const std::int64_t first = item % bands * kRows;
                 for_items(outer, item / bands, item / bands + 1,
                           [&](std::int64_t, const std::array<std::int64_t, 2>& offset) {
                             transpose(job.out + (offset[0] + first * out_step) * bytes, out_step,
                                       job.x + (offset[1] + first) * bytes, x_step,
                                       std::min(kRows, rows - first), columns);
                           });
               }
             });
}

void copy_same_type(const CopyJob& job, DType dtype) {
  const bool dense = job.walk.inner_stride(0) == 1 && job.walk.inner_stride(1) == 1;
  if (dense && (job.walk.inner() >= kShortRun || job.walk.rank == 1)) return copy_runs(job, dtype, dtype);
  if (const int axis = crossed_axis(job.walk); axis >= 0) return copy_crossed(job, axis);
  switch (job.out_size) {
    case 1:
      return copy_planes<std::uint8_t>(job);
    case 2:
      return copy_planes<std::uint16_t>(job);
    case 4:
      return copy_planes<std::uint32_t>(job);
    default:
      return copy_planes<std::uint64_t>(job);
  }
}

}  // namespace

void CpuBackend::copy(const Tensor& out, const Tensor& x) {
  if (out.numel() == 0) return;
  const auto walk = walk_elements<2>({&out, &x});
  const CopyJob job{threads_,          *rows_.convert, walk,
                    out.data<char>(),  x.data<char>(), size_of(out.dtype()),
                    size_of(x.dtype())};
  if (out.dtype() == x.dtype()) return copy_same_type(job, out.dtype());
  const bool dense = walk.inner_stride(0) == 1 && walk.inner_stride(1) == 1;
  if (dense && (walk.inner() >= kShortRun || walk.rank == 1)) return copy_runs(job, out.dtype(), x.dtype());
  // Strides and types both differ: straighten x first, convert, then lay out.
  const Tensor straight = x.is_contiguous() ? x : empty(x.shape(), x.dtype());
  if (!x.is_contiguous()) copy(straight, x);
  if (out.is_contiguous()) return copy(out, straight);
  const Tensor converted = empty(out.shape(), out.dtype());
  copy(converted, straight);
  copy(out, converted);
}

namespace {
bool has_dense_rows(const Tensor& x) { return x.rank() == 0 || x.dim(-1) <= 1 || x.strides()[-1] == 1; }
}  // namespace

Tensor CpuBackend::dense_rows(const Tensor& x) { return has_dense_rows(x) ? x : dense(x); }

Tensor CpuBackend::dense(const Tensor& x) {
  if (x.is_contiguous()) return x;
  const Tensor packed = empty(x.shape(), x.dtype());
  copy(packed, x);
  return packed;
}

CpuBackend::DenseOutput::DenseOutput(CpuBackend& backend, const Tensor& out, Use use)
    : backend_(backend), out_(out), dense_(out) {
  if (has_dense_rows(out)) return;
  dense_ = backend.empty(out.shape(), out.dtype());
  if (use == kUpdate) backend.copy(dense_, out);
}

void CpuBackend::DenseOutput::finish() {
  if (dense_.storage() != out_.storage()) backend_.copy(out_, dense_);
}

}  // namespace danceflux::cpu
