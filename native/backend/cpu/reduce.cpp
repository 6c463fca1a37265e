// reduce over any axes. Every result is a sum, in order and in f64, of pieces whose cuts depend on the
// reduced axes alone; which of the ways below computes the pieces changes nothing.
//
// Rows: the reduced elements of one result lie dense (or are gathered so). Columns: results lie side by side.
#include <cmath>
#include <limits>
#include <memory>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/row_blocks.h"
#include "backend/cpu/row_kernels.h"

namespace danceflux::cpu {
namespace {

constexpr std::int64_t kGather = 1024;  // the kernel's own block, so that gathering keeps its order
constexpr std::int64_t kColumnChunk = 1024;

struct ReduceJob {
  ThreadPool& threads;
  const ReduceRows& kernels;
  Walk<2> kept;    // x, out
  Walk<1> folded;  // x
  RowFold fold;
  double count;  // what the fold is divided by
  const float* x;
  float* out;

  double empty() const { return fold == kFoldMax ? -std::numeric_limits<double>::infinity() : 0.0; }
  double join(double all, double piece) const {
    if (fold != kFoldMax) return all + piece;
    return all > piece || std::isnan(all) ? all : piece;
  }
  void write(std::int64_t offset, double value) const { out[offset] = static_cast<float>(value / count); }
};

// ---- rows ------------------------------------------------------------------------------------------------
std::int64_t pieces_per_run(const ReduceJob& job) { return (job.folded.inner() + kRowPiece - 1) / kRowPiece; }

double fold_piece(const ReduceJob& job, const float* x, std::int64_t n) {
  const auto kernel = job.kernels.row[job.fold];
  const std::int64_t step = job.folded.inner_stride(0);
  if (step == 1) return kernel(x, n);
  double all = job.empty();
  float dense[kGather];
  for (std::int64_t done = 0; done < n; done += kGather) {
    const std::int64_t count = std::min(kGather, n - done);
    gather_run(dense, x + done * step, step, count);
    all = job.join(all, kernel(dense, count));
  }
  return all;
}

double fold_run_piece(const ReduceJob& job, const float* run, std::int64_t piece) {
  const std::int64_t start = piece * kRowPiece;
  return fold_piece(job, run + start * job.folded.inner_stride(0),
                    std::min(kRowPiece, job.folded.inner() - start));
}

void fold_rows(const ReduceJob& job) {
  const std::int64_t pieces = pieces_per_run(job);
  for_ranges(job.threads, job.kept.total, job.folded.total, [&](std::int64_t begin, std::int64_t end, int) {
    for_items(job.kept, begin, end, [&](std::int64_t, const std::array<std::int64_t, 2>& at) {
      double all = job.empty();
      for_runs(job.folded, 0, job.folded.total, [&](const std::array<std::int64_t, 1>& offset, std::int64_t) {
        for (std::int64_t piece = 0; piece < pieces; ++piece) {
          all = job.join(all, fold_run_piece(job, job.x + at[0] + offset[0], piece));
        }
      });
      job.write(at[1], all);
    });
  });
}

/// Few results of many elements: the pieces themselves are the tasks.
void fold_long_rows(const ReduceJob& job) {
  const std::int64_t per_run = pieces_per_run(job), runs = job.folded.total / job.folded.inner(),
                     pieces = per_run * runs;
  const auto partial =
      std::make_unique_for_overwrite<double[]>(static_cast<std::size_t>(job.kept.total * pieces));
  for_ranges(job.threads, job.kept.total * pieces, std::min(kRowPiece, job.folded.inner()),
             [&](std::int64_t begin, std::int64_t end, int) {
               for (std::int64_t i = begin; i < end; ++i) {
                 const std::int64_t piece = i % pieces, run = piece / per_run * job.folded.inner();
                 for_items(job.kept, i / pieces, i / pieces + 1,
                           [&](std::int64_t, const std::array<std::int64_t, 2>& at) {
                             for_items(job.folded, run, run + 1,
                                       [&](std::int64_t, const std::array<std::int64_t, 1>& offset) {
                                         partial[static_cast<std::size_t>(i)] =
                                             fold_run_piece(job, job.x + at[0] + offset[0], piece % per_run);
                                       });
                           });
               }
             });
  for_items(job.kept, 0, job.kept.total, [&](std::int64_t item, const std::array<std::int64_t, 2>& at) {
    double all = job.empty();
    for (std::int64_t i = 0; i < pieces; ++i)
      all = job.join(all, partial[static_cast<std::size_t>(item * pieces + i)]);
    job.write(at[1], all);
  });
}

// ---- columns ---------------------------------------------------------------------------------------------
/// The axes of `kept` but the innermost.
Walk<2> outer_axes(const Walk<2>& kept) {
  Walk<2> outer = kept;
  outer.rank -= 1;
  outer.total /= kept.inner();
  if (outer.rank == 0) outer.merge();
  return outer;
}

/// body(x offset, rows) for every block of rows, in order.
template <class Body>
void for_row_blocks(const ReduceJob& job, const Body& body) {
  for_runs(job.folded, 0, job.folded.total,
           [&](const std::array<std::int64_t, 1>& offset, std::int64_t rows) {
             for (std::int64_t row = 0; row < rows; row += kRowsPerBlock) {
               body(offset[0] + row * job.folded.inner_stride(0), std::min(kRowsPerBlock, rows - row));
             }
           });
}

void fold_column_chunk(const ReduceJob& job, const std::array<std::int64_t, 2>& at, std::int64_t first,
                       std::int64_t n) {
  const std::int64_t row_step = job.folded.inner_stride(0);
  double all[kColumnChunk];
  float part[kColumnChunk];
  std::fill_n(all, n, job.empty());
  for_row_blocks(job, [&](std::int64_t offset, std::int64_t rows) {
    job.kernels.columns[job.fold](part, job.x + at[0] + offset + first, row_step, rows, n);
    for (std::int64_t j = 0; j < n; ++j) all[j] = job.join(all[j], part[j]);
  });
  for (std::int64_t j = 0; j < n; ++j) job.write(at[1] + (first + j) * job.kept.inner_stride(1), all[j]);
}

void fold_columns(const ReduceJob& job) {
  const Walk<2> outer = outer_axes(job.kept);
  const std::int64_t columns = job.kept.inner(), chunks = (columns + kColumnChunk - 1) / kColumnChunk;
  for_ranges(job.threads, outer.total * chunks, job.folded.total * std::min(columns, kColumnChunk),
             [&](std::int64_t begin, std::int64_t end, int) {
               for (std::int64_t i = begin; i < end; ++i) {
                 const std::int64_t first = i % chunks * kColumnChunk;
                 for_items(outer, i / chunks, i / chunks + 1,
                           [&](std::int64_t, const std::array<std::int64_t, 2>& at) {
                             fold_column_chunk(job, at, first, std::min(kColumnChunk, columns - first));
                           });
               }
             });
}

/// Few columns of many rows: the blocks of rows are the tasks.
void fold_long_columns(const ReduceJob& job) {
  const Walk<2> outer = outer_axes(job.kept);
  const std::int64_t columns = job.kept.inner(), rows = job.folded.inner(), runs = job.folded.total / rows;
  const std::int64_t per_run = block_count(rows), blocks = per_run * runs;
  const auto partial =
      std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(outer.total * blocks * columns));
  for_ranges(job.threads, outer.total * blocks, kRowsPerBlock * columns,
             [&](std::int64_t begin, std::int64_t end, int) {
               for (std::int64_t i = begin; i < end; ++i) {
                 const std::int64_t run = i % blocks / per_run, row = i % per_run * kRowsPerBlock;
                 for_items(outer, i / blocks, i / blocks + 1,
                           [&](std::int64_t, const std::array<std::int64_t, 2>& at) {
                             for_items(job.folded, run * rows + row, run * rows + row + 1,
                                       [&](std::int64_t, const std::array<std::int64_t, 1>& offset) {
                                         job.kernels.columns[job.fold](
                                             &partial[static_cast<std::size_t>(i * columns)],
                                             job.x + at[0] + offset[0], job.folded.inner_stride(0),
                                             std::min(kRowsPerBlock, rows - row), columns);
                                       });
                           });
               }
             });
  for_items(outer, 0, outer.total, [&](std::int64_t item, const std::array<std::int64_t, 2>& at) {
    for (std::int64_t j = 0; j < columns; ++j) {
      double all = job.empty();
      for (std::int64_t i = 0; i < blocks; ++i)
        all = job.join(all, partial[static_cast<std::size_t>((item * blocks + i) * columns + j)]);
      job.write(at[1] + j * job.kept.inner_stride(1), all);
    }
  });
}

// ---- which -----------------------------------------------------------------------------------------------
ReduceJob plan(ThreadPool& threads, const ReduceRows& kernels, ReduceOp op, const Tensor& out,
               const Tensor& x) {
  ReduceJob job{threads, kernels, {}, {}, kFoldSum, 1, x.data<float>(), out.data<float>()};
  if (op == ReduceOp::max) job.fold = kFoldMax;
  if (op == ReduceOp::sum_of_squares) job.fold = kFoldSquares;
  for (int axis = 0; axis < x.rank(); ++axis) {
    if (out.dim(axis) == x.dim(axis)) {
      job.kept.push(x.dim(axis), {x.strides()[axis], out.strides()[axis]});
    } else {
      job.folded.push(x.dim(axis), {x.strides()[axis]});
    }
  }
  job.kept.sort_by_stride();
  job.folded.sort_by_stride();
  job.kept.merge();
  job.folded.merge();
  if (op == ReduceOp::mean) job.count = static_cast<double>(job.folded.total);
  return job;
}

}  // namespace

void CpuBackend::reduce(ReduceOp op, const Tensor& out, const Tensor& x) {
  if (out.numel() == 0) return;
  const ReduceJob job = plan(threads_, *rows_.reduce, op, out, x);
  if (job.folded.total == 0) {  // of nothing: 0, NaN or -infinity, as NumPy has it
    fill(out, static_cast<float>(job.empty() / job.count));
  } else if (job.folded.total == 1) {
    unary(op == ReduceOp::sum_of_squares ? UnaryOp::square : UnaryOp::affine, out, x, 1, 0);
  } else if (job.folded.inner_stride(0) != 1 && job.kept.inner_stride(0) == 1 && job.kept.inner() > 1) {
    const std::int64_t tasks =
        job.kept.total / job.kept.inner() * ((job.kept.inner() + kColumnChunk - 1) / kColumnChunk);
    return tasks < 16 && job.folded.total >= 4 * kRowsPerBlock ? fold_long_columns(job) : fold_columns(job);
  } else {
    return job.kept.total < 16 && job.folded.total >= 4 * kRowPiece ? fold_long_rows(job) : fold_rows(job);
  }
}

}  // namespace danceflux::cpu
