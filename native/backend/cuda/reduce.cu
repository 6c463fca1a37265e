// Many elements to one. The order of every sum is a function of the shape alone; along a batch axis that is
// kept, no result knows of its neighbours.
#include <limits>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/layout.h"
#include "core/error.h"

namespace danceflux::cuda {
namespace {

constexpr int kThreads = 256;
/// Elements that one thread folds in a column before the parts are folded.
constexpr std::int64_t kChunk = 64;

struct Plan {
  Layout<2> kept;      // of out and x
  Layout<1> reduced;   // of x
  std::int64_t chunk;  // of a column; the whole of it when parts are not wanted
  float scale;         // the whole is multiplied by it
};

template <class Fold, bool kSquares, class T>
DF_DEVICE float fold_one(float so_far, T value) {
  const float x = widen(value);
  return Fold::join(so_far, kSquares ? x * x : x);
}

/// A team of threads for each result: reduced elements lie side by side.
template <class Fold, bool kSquares, class T, int kTeam>
__global__ void reduce_rows(float* out, const T* x, Plan plan) {
  __shared__ float parts[kWarp];
  using Team = RowTeam<kTeam>;
  const std::int64_t i = Team::row();
  if (i >= plan.kept.total) return;
  std::int64_t offset[2], inner[1];
  plan.kept.offsets(i, offset);
  float value = Fold::none();
  for (std::int64_t r = Team::lane(); r < plan.reduced.total; r += kTeam) {
    plan.reduced.offsets(r, inner);
    value = fold_one<Fold, kSquares>(value, x[offset[1] + inner[0]]);
  }
  value = Team::template fold<Fold>(value, parts);
  if (Team::lane() == 0) out[offset[0]] = value * plan.scale;
}

/// A thread for each chunk of each result: results lie side by side. out is [chunks, results] when there are
/// several.
template <class Fold, bool kSquares, class T>
__global__ void reduce_columns(float* out, const T* x, Plan plan) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= plan.kept.total) return;
  std::int64_t offset[2], inner[1];
  plan.kept.offsets(i, offset);
  const std::int64_t first = blockIdx.y * plan.chunk;
  const std::int64_t last = first + plan.chunk < plan.reduced.total ? first + plan.chunk : plan.reduced.total;
  float value = Fold::none();
  for (std::int64_t r = first; r < last; ++r) {
    plan.reduced.offsets(r, inner);
    value = fold_one<Fold, kSquares>(value, x[offset[1] + inner[0]]);
  }
  const std::int64_t to = gridDim.y > 1 ? blockIdx.y * plan.kept.total + i : offset[0];
  out[to] = value * plan.scale;
}

template <class Fold, bool kSquares, class T>
void reduce_as(CudaBackend& device, const Tensor& out, const T* x, Plan plan) {
  const auto results = plan.kept.total, count = plan.reduced.total;
  float* to = out.data<float>();
  const bool columns = plan.kept.rank > 0 && plan.kept.stride[1][plan.kept.rank - 1] == 1 &&
                       plan.kept.size[plan.kept.rank - 1] >= kWarp;
  if (!columns) {
    if (count <= 1024) {
      device.launch({.x = blocks_for(results, kThreads / kWarp), .threads = kThreads},
                    reduce_rows<Fold, kSquares, T, kWarp>, to, x, plan);
    } else {
      device.launch({.x = static_cast<unsigned>(results), .threads = kThreads},
                    reduce_rows<Fold, kSquares, T, kThreads>, to, x, plan);
    }
    return;
  }
  const Grid whole{.x = blocks_for(results, kThreads), .threads = kThreads};
  // As many parts as keep a part's part count small: the shape alone decides.
  std::int64_t chunk = kChunk;
  while ((count + chunk - 1) / chunk > 4096) chunk *= 2;
  const std::int64_t chunks = (count + chunk - 1) / chunk;
  if (chunks <= 1) {
    plan.chunk = count;
    return device.launch(whole, reduce_columns<Fold, kSquares, T>, to, x, plan);
  }
  const Tensor parts = device.empty({chunks, results});
  Plan first = plan;
  first.chunk = chunk;
  first.scale = 1;
  Grid grid = whole;
  grid.y = static_cast<unsigned>(chunks);
  device.launch(grid, reduce_columns<Fold, kSquares, T>, parts.data<float>(), x, first);
  Plan second = plan;
  second.reduced = {};
  second.reduced.push(chunks, {results});
  second.chunk = chunks;
  std::int64_t step = 1;  // parts lie in the order of the results
  for (int axis = second.kept.rank - 1; axis >= 0; --axis) {
    second.kept.stride[1][axis] = step;
    step *= second.kept.size[axis];
  }
  device.launch(whole, reduce_columns<Fold, false, float>, to, parts.data<float>(), second);
}

template <class T>
void reduce_with(CudaBackend& device, ReduceOp op, const Tensor& out, const T* x, const Plan& plan) {
  switch (op) {
    case ReduceOp::max:
      return reduce_as<Max, false>(device, out, x, plan);
    case ReduceOp::sum_of_squares:
      return reduce_as<Sum, true>(device, out, x, plan);
    default:
      return reduce_as<Sum, false>(device, out, x, plan);
  }
}

// ---- softmax
// ------------------------------------------------------------------------------------------------------

template <class T, int kTeam>
__global__ void softmax_rows(T* out, const T* x, RowLayout<2> layout) {
  __shared__ float parts[kWarp];
  using Team = RowTeam<kTeam>;
  const std::int64_t row = Team::row();
  if (row >= layout.rows.total) return;
  std::int64_t offset[2];
  layout.rows.offsets(row, offset);
  const T* from = x + offset[1];
  T* to = out + offset[0];
  float highest = -INFINITY;
  for (std::int64_t i = Team::lane(); i < layout.width; i += kTeam)
    highest = fmaxf(highest, widen(from[i * layout.step[1]]));
  highest = Team::template fold<Max>(highest, parts);
  const float base = highest == -INFINITY ? 0.0f : highest;  // -inf only: zeros
  float sum = 0;
  for (std::int64_t i = Team::lane(); i < layout.width; i += kTeam)
    sum += expf(widen(from[i * layout.step[1]]) - base);
  sum = Team::template fold<Sum>(sum, parts);
  const float scale = sum == 0 ? 0.0f : 1.0f / sum;
  for (std::int64_t i = Team::lane(); i < layout.width; i += kTeam)
    to[i * layout.step[0]] = narrow_to<T>(expf(widen(from[i * layout.step[1]]) - base) * scale);
}

template <class T, int kTeam>
__global__ void softmax_backward_rows(T* dx, const T* y, const T* dy, RowLayout<3> layout) {
  __shared__ float parts[kWarp];
  using Team = RowTeam<kTeam>;
  const std::int64_t row = Team::row();
  if (row >= layout.rows.total) return;
  std::int64_t offset[3];
  layout.rows.offsets(row, offset);
  float dot = 0;
  for (std::int64_t i = Team::lane(); i < layout.width; i += kTeam)
    dot += widen(y[offset[1] + i * layout.step[1]]) * widen(dy[offset[2] + i * layout.step[2]]);
  dot = Team::template fold<Sum>(dot, parts);
  for (std::int64_t i = Team::lane(); i < layout.width; i += kTeam) {
    const float value = widen(y[offset[1] + i * layout.step[1]]);
    dx[offset[0] + i * layout.step[0]] =
        narrow_to<T>(value * (widen(dy[offset[2] + i * layout.step[2]]) - dot));
  }
}

}  // namespace

void CudaBackend::reduce(ReduceOp op, const Tensor& out, const Tensor& x) {
  enter("reduce");
  Plan plan{};
  std::int64_t count = 1;
  for (int axis = 0; axis < x.rank(); ++axis) {
    if (out.dim(axis) == x.dim(axis)) {
      plan.kept.push(x.dim(axis), {out.strides()[axis], x.strides()[axis]});
    } else {
      plan.reduced.push(x.dim(axis), {x.strides()[axis]});
      count *= x.dim(axis);
    }
  }
  plan.scale = op == ReduceOp::mean ? 1.0f / static_cast<float>(count) : 1.0f;
  if (plan.kept.total == 0) return;
  if (count == 0) return fill(out, 0);
  with_activation("reduce", x.dtype(), [&](auto type) {
    using T = decltype(type);
    reduce_with(*this, op, out, static_cast<const T*>(x.address()), plan);
  });
}

void CudaBackend::softmax(const Tensor& out, const Tensor& x) {
  enter("softmax");
  const RowLayout<2> layout = rows_of<2>({&out, &x});
  if (x.numel() == 0) return;
  with_activation("softmax", x.dtype(), [&](auto type) {
    using T = decltype(type);
    const bool block = layout.width > 1024;
    launch({.x = blocks_for(layout.rows.total, block ? 1 : kRowBlock / kWarp), .threads = kRowBlock},
           block ? softmax_rows<T, kRowBlock> : softmax_rows<T, kWarp>, out.data<T>(), x.data<T>(), layout);
  });
}

void CudaBackend::softmax_backward(const Tensor& dx, const Tensor& y, const Tensor& dy) {
  enter("softmax_backward");
  const RowLayout<3> layout = rows_of<3>({&dx, &y, &dy});
  if (y.numel() == 0) return;
  with_activation("softmax_backward", y.dtype(), [&](auto type) {
    using T = decltype(type);
    const bool block = layout.width > 1024;
    launch({.x = blocks_for(layout.rows.total, block ? 1 : kRowBlock / kWarp), .threads = kRowBlock},
           block ? softmax_backward_rows<T, kRowBlock> : softmax_backward_rows<T, kWarp>, dx.data<T>(),
           y.data<T>(), dy.data<T>(), layout);
  });
}

}  // namespace danceflux::cuda
