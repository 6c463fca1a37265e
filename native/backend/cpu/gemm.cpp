#include "backend/cpu/gemm.h"

#include <algorithm>

#include "backend/cpu/gemm_kernels.h"

namespace danceflux::cpu {
namespace {

// The usual block of K: a sliver of A and the rows of C under way stay in the first cache.
constexpr std::int64_t kDepth = 384;
// Below these sizes of a task the packing of A, and of B, shows.
constexpr std::int64_t kNarrow = 64, kLow = 96;
// Less is not worth a second thread.
constexpr double kTaskFlops = 2.5e5;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

// How C is cut into tasks.
struct Grid {
  std::int64_t rows, columns;            // of a rectangle
  std::int64_t row_count, column_count;  // rectangles per batch entry
  std::int64_t batches, batch_group;     // entries in all, entries per task
  std::int64_t tasks() const { return ceil_div(batches, batch_group) * row_count * column_count; }
};

Grid choose_grid(const Product& p, const Workspace& workspace, int threads) {
  const GemmKernels& kernels = *workspace.kernels.gemm;
  const std::int64_t wide = std::min(kMaxColumns, workspace.second_cache * 3 / 4 / (kDepth * 4));
  Grid grid{};
  grid.batches = p.batch[0] * p.batch[1];
  grid.columns = std::min(wide / kernels.nr * kernels.nr, round_up(p.columns, kernels.nr));
  grid.rows = p.rows;
  grid.batch_group = 1;
  const double each = 2.0 * static_cast<double>(p.rows) * static_cast<double>(p.columns) *
                      static_cast<double>(std::max<std::int64_t>(p.depth, 1));
  const double all = each * static_cast<double>(grid.batches);
  // several tasks per thread even out what neighbours on the machine take away
  const auto wanted =
      threads == 1 ? 1
                   : std::clamp<std::int64_t>(static_cast<std::int64_t>(all / kTaskFlops), 1, 4 * threads);
  if (grid.batches >= wanted) {
    grid.batch_group = std::max<std::int64_t>(
        1, grid.batches / std::max<std::int64_t>(wanted, static_cast<std::int64_t>(all / (4 * kTaskFlops))));
  } else {
    const std::int64_t pieces = ceil_div(wanted, grid.batches);
    if (ceil_div(p.columns, grid.columns) < pieces)
      grid.columns =
          std::max(round_up(ceil_div(p.columns, pieces), kernels.nr), round_up(kNarrow, kernels.nr));
    const std::int64_t across = ceil_div(p.columns, grid.columns);
    if (across < pieces)
      grid.rows = std::max(round_up(ceil_div(p.rows, ceil_div(pieces, across)), kernels.mr),
                           round_up(kLow, kernels.mr));
  }
  grid.row_count = std::max<std::int64_t>(1, ceil_div(p.rows, grid.rows));
  grid.column_count = ceil_div(p.columns, grid.columns);
  return grid;
}

// A rectangle of C on its way through K.
class Rectangle {
 public:
  Rectangle(const Product& p, const GemmKernels& kernels, const Grid& grid, float* memory)
      : p_(p), kernels_(kernels), blocks_(p.depth), left_(kernels, grid.rows, blocks_.size), memory_(memory) {
    b_at_ = round_up(left_.floats(), 16);
    c_at_ = b_at_ + grid.columns * blocks_.size;
    size_ = c_at_ + (in_place() ? 0 : grid.rows * grid.columns);
  }

  std::int64_t floats() const { return size_; }

  void run(std::int64_t batch, std::int64_t first_row, std::int64_t rows, std::int64_t first_column,
           std::int64_t columns) {
    batch_ = batch, row_ = first_row, rows_ = rows, column_ = first_column, columns_ = columns;
    const std::int64_t outer = batch / p_.batch[1], inner = batch % p_.batch[1];
    left_.bind(memory_, entry(p_.a, outer, inner), p_.a.gather, batch, row_, rows_, columns_ <= kernels_.nr);
    b_ = entry(p_.b, outer, inner);
    if (p_.c)
      c_ = p_.c + outer * p_.c_batch[0] + inner * p_.c_batch[1] + row_ * p_.c_row + column_ * p_.c_column;
    float* c = in_place() ? c_ : memory_ + c_at_;
    const std::int64_t c_row = in_place() ? p_.c_row : columns_;
    if (!in_place() && p_.accumulate) move_c<true>();
    walk(c, c_row);
    if (!in_place() && p_.c) move_c<false>();
  }

 private:
  bool in_place() const { return p_.c && p_.c_column == 1; }

  static Panel entry(const Operand& operand, std::int64_t outer, std::int64_t inner) {
    Panel panel = operand.panel;
    if (!operand.gather)
      panel.data = shifted(panel, outer * operand.batch_stride[0] + inner * operand.batch_stride[1]);
    return panel;
  }

  template <bool kRead>
  void move_c() {
    for (std::int64_t i = 0; i < rows_; ++i)
      for (std::int64_t j = 0; j < columns_; ++j) {
        float& near = memory_[c_at_ + i * columns_ + j];
        float& far = c_[i * p_.c_row + j * p_.c_column];
        kRead ? near = far : far = near;
      }
  }

  void walk(float* c, std::int64_t c_row) {
    StripArgs strip{};
    strip.c_row = c_row;
    strip.alpha = p_.alpha;
    const std::int64_t slivers = ceil_div(columns_, kernels_.nr);
    for (std::int64_t block = 0; block < blocks_.count; ++block) {
      k_ = block * blocks_.size;
      strip.depth = depth_ = std::min(blocks_.size, p_.depth - k_);
      strip.load_c = block > 0 || p_.accumulate;
      const bool last = block + 1 == blocks_.count;
      left_.enter_block(k_, depth_);
      for (std::int64_t i = 0; i < rows_; i += left_.strip_rows()) {
        left_.take(strip, i);
        if (last && p_.row_bias) strip.row_bias = p_.row_bias + row_ + i;
        for (std::int64_t j = 0; j < slivers; ++j) {
          const std::int64_t column = j * kernels_.nr;
          strip.columns = std::min<std::int64_t>(kernels_.nr, columns_ - column);
          strip.c = c + i * c_row + column;
          if (last && p_.column_bias) strip.column_bias = p_.column_bias + column_ + column;
          take_b(strip, i == 0, column);
          left_.fetch_ahead(i, j, slivers);
          kernels_.strip(strip);
        }
        if (last && p_.finish)
          p_.finish->call(p_.finish->self, c + i * c_row, c_row, batch_, row_ + i, strip.rows, column_,
                          columns_);
      }
    }
  }

  // B is packed when the first strip of A meets it: sliver by sliver where it lies along k (each is then used
  // while fresh), all at once where it lies across (whole rows of memory are then read, not snippets).
  void take_b(StripArgs& strip, bool first, std::int64_t j) {
    const bool whole = p_.b.gather || b_.line_stride == 1;
    const std::int64_t sliver = kernels_.nr * depth_, lines = whole ? columns_ : strip.columns;
    strip.b = memory_ + b_at_ + j / kernels_.nr * sliver;
    strip.b_depth = kernels_.nr;
    float* to = memory_ + b_at_ + j / kernels_.nr * sliver;
    const bool now = first && depth_ > 0 && (!whole || j == 0);
    if (p_.b.gather) {
      if (now)
        p_.b.gather->pack(p_.b.gather->self, to, kernels_.nr, sliver, batch_, column_ + j, lines, k_, depth_);
      return;
    }
    Panel part = b_;
    part.data = shifted(b_, (column_ + j) * b_.line_stride + k_ * b_.depth_stride);
    if (b_lies_near() && strip.columns == kernels_.nr) {
      strip.b = static_cast<const float*>(part.data);
      strip.b_depth = b_.depth_stride;
    } else if (now || (b_lies_near() && first)) {
      kernels_.pack_interleaved(to, kernels_.nr, sliver, part, b_lies_near() ? strip.columns : lines, depth_);
    }
  }

  bool b_lies_near() const {
    return b_.store == Store::f32 && b_.line_stride == 1 &&
           (rows_ <= kernels_.mr || b_.depth_stride <= kNearLine);
  }

  const Product& p_;
  const GemmKernels& kernels_;
  const DepthBlocks blocks_;
  LeftStrips left_;
  float* memory_;
  std::int64_t b_at_, c_at_, size_;
  std::int64_t batch_ = 0, row_ = 0, rows_ = 0, column_ = 0, columns_ = 0, k_ = 0, depth_ = 0;
  Panel b_{};
  float* c_ = nullptr;
};

// A product with C on its side is the transposed product.
Product upright(const Product& product) {
  Product p = product;
  if (p.c_column != 1 && p.c_row == 1 && !p.finish) {
    std::swap(p.rows, p.columns);
    std::swap(p.a, p.b);
    std::swap(p.c_row, p.c_column);
    std::swap(p.column_bias, p.row_bias);
  }
  return p;
}

// Batch entries that share B and follow each other in A and C are more rows of one product.
void fold_batch(Product& p, int axis) {
  const bool foldable = p.batch[axis] > 1 && !p.a.gather && !p.b.gather && p.b.batch_stride[axis] == 0 &&
                        !p.row_bias && !p.finish &&
                        p.a.batch_stride[axis] == p.rows * p.a.panel.line_stride &&
                        p.c_batch[axis] == p.rows * p.c_row && (axis == 1 || p.batch[1] == 1);
  if (!foldable) return;
  p.rows *= p.batch[axis];
  p.batch[axis] = 1;
}

}  // namespace

DepthBlocks::DepthBlocks(std::int64_t depth) {
  count = std::max<std::int64_t>(1, (depth + kDepth / 2) / kDepth);
  size = round_up(ceil_div(depth, count), 16);
  count = std::max<std::int64_t>(1, ceil_div(depth, std::max<std::int64_t>(size, 1)));
}

void multiply(const Product& product, ThreadPool& threads, Workspace& workspace) {
  Product p = upright(product);
  fold_batch(p, 1);
  fold_batch(p, 0);
  if (p.rows == 0 || p.columns == 0 || p.batch[0] * p.batch[1] == 0) return;
  const GemmKernels& kernels = *workspace.kernels.gemm;
  const Grid grid = choose_grid(p, workspace, threads.threads());
  workspace.reserve_workers(static_cast<std::size_t>(Rectangle(p, kernels, grid, nullptr).floats()) *
                            sizeof(float));
  threads.run(grid.tasks(), [&](std::int64_t task, int worker) {
    Rectangle rectangle(p, kernels, grid, workspace.worker(worker));
    const std::int64_t column = task / grid.row_count % grid.column_count * grid.columns;
    const std::int64_t row = task % grid.row_count * grid.rows;
    const std::int64_t first = task / (grid.row_count * grid.column_count) * grid.batch_group;
    for (std::int64_t batch = first; batch < std::min(first + grid.batch_group, grid.batches); ++batch)
      rectangle.run(batch, row, std::min(grid.rows, p.rows - row), column,
                    std::min(grid.columns, p.columns - column));
  });
}

}  // namespace danceflux::cpu
