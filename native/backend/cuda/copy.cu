// Moving elements, between layouts and dtypes.
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/layout.h"
#include "core/error.h"

namespace danceflux::cuda {
namespace {

constexpr int kThreads = 256;
/// Side of the square that a transposing block moves through shared memory.
constexpr int kTile = 32, kTileRows = kThreads / kTile;

/// From one storage type to another. The same type moves bits, so that a NaN keeps its own.
template <class To, class From>
struct Convert {
  static DF_DEVICE To of(From value) { return narrow_to<To>(widen(value)); }
};
template <class T>
struct Convert<T, T> {
  static DF_DEVICE T of(T value) { return value; }
};

template <class To, class From>
__global__ void copy_strided(To* out, const From* x, Layout<2> layout) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= layout.total) return;
  std::int64_t offset[2];
  layout.offsets(i, offset);
  out[offset[0]] = Convert<To, From>::of(x[offset[1]]);
}

/// Four elements to a thread, read and written as wide as they are.
template <class To, class From>
__global__ void copy_flat(To* out, const From* x, std::int64_t total) {
  constexpr int kCount = 4;
  struct alignas(sizeof(To) * kCount) Tos {
    To value[kCount];
  };
  struct alignas(sizeof(From) * kCount) Froms {
    From value[kCount];
  };
  const std::int64_t at = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * kCount;
  if (at + kCount <= total) {
    const Froms from = *reinterpret_cast<const Froms*>(x + at);
    Tos to;
    for (int j = 0; j < kCount; ++j) to.value[j] = Convert<To, From>::of(from.value[j]);
    *reinterpret_cast<Tos*>(out + at) = to;
    return;
  }
  for (std::int64_t i = at; i < total; ++i) out[i] = Convert<To, From>::of(x[i]);
}

/// Matrices whose rows lie dense in `out` and whose columns lie dense in `x`: a square at a time, so that
/// both sides are read and written along memory.
struct TransposeShape {
  std::int64_t rows, columns, out_step, x_step;
};
template <class To, class From>
__global__ void copy_transposed(To* out, const From* x, TransposeShape shape, Layout<2> matrices) {
  __shared__ From tile[kTile][kTile + 1];  // one more: neighbours of a column lie in different banks
  std::int64_t offset[2];
  matrices.offsets(blockIdx.z, offset);
  out += offset[0];
  x += offset[1];
  const std::int64_t row0 = std::int64_t{blockIdx.y} * kTile, column0 = std::int64_t{blockIdx.x} * kTile;
  const int lane = static_cast<int>(threadIdx.x) % kTile, first = static_cast<int>(threadIdx.x) / kTile;
  for (int j = first; j < kTile; j += kTileRows) {
    const std::int64_t row = row0 + lane, column = column0 + j;
    if (row < shape.rows && column < shape.columns) tile[j][lane] = x[column * shape.x_step + row];
  }
  __syncthreads();
  for (int j = first; j < kTile; j += kTileRows) {
    const std::int64_t row = row0 + j, column = column0 + lane;
    if (row < shape.rows && column < shape.columns)
      out[row * shape.out_step + column] = Convert<To, From>::of(tile[lane][j]);
  }
}

template <class T>
__global__ void fill_strided(T* out, Layout<1> layout, T value) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= layout.total) return;
  std::int64_t offset[1];
  layout.offsets(i, offset);
  out[offset[0]] = value;
}

/// The innermost axis is dense in `out` and the axis before it is dense in `x`.
bool is_transpose(const Layout<2>& layout) {
  const int last = layout.rank - 1;
  return layout.rank >= 2 && layout.stride[0][last] == 1 && layout.stride[1][last - 1] == 1 &&
         layout.size[last] >= 8 && layout.size[last - 1] >= 8 &&
         layout.total / (layout.size[last] * layout.size[last - 1]) <= 65535 &&
         layout.size[last - 1] <= std::int64_t{65535} * kTile;
}

template <class To, class From>
void copy_as(CudaBackend& device, const Tensor& out, const Tensor& x) {
  const Layout<2> layout = layout_of<2>({&out, &x});
  if (layout.total == 0) return;
  To* to = out.data<To>();
  const From* from = x.data<From>();
  const auto address = reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from);
  if (layout.flat() && address % (4 * std::max(sizeof(To), sizeof(From))) == 0) {
    device.launch({.x = blocks_for(layout.total, kThreads * 4), .threads = kThreads}, copy_flat<To, From>, to,
                  from, layout.total);
  } else if (is_transpose(layout)) {
    const int last = layout.rank - 1;
    Layout<2> matrices;
    for (int axis = 0; axis < last - 1; ++axis)
      matrices.push(layout.size[axis], {layout.stride[0][axis], layout.stride[1][axis]});
    const TransposeShape shape{layout.size[last - 1], layout.size[last], layout.stride[0][last - 1],
                               layout.stride[1][last]};
    device.launch({.x = blocks_for(shape.columns, kTile),
                   .y = blocks_for(shape.rows, kTile),
                   .z = static_cast<unsigned>(matrices.total),
                   .threads = kThreads},
                  copy_transposed<To, From>, to, from, shape, matrices);
  } else {
    device.launch({.x = blocks_for(layout.total, kThreads), .threads = kThreads}, copy_strided<To, From>, to,
                  from, layout);
  }
}

template <class Body>
void with_float(DType dtype, const Body& body) {
  if (dtype == DType::f64) return body(double());
  with_stored("copy", dtype, body);
}

}  // namespace

void CudaBackend::copy(const Tensor& out, const Tensor& x) {
  enter("copy");
  if (out.dtype() == x.dtype()) {
    switch (size_of(x.dtype())) {
      case 1:
        return copy_as<std::uint8_t, std::uint8_t>(*this, out, x);
      case 2:
        return copy_as<std::uint16_t, std::uint16_t>(*this, out, x);
      case 4:
        return copy_as<std::uint32_t, std::uint32_t>(*this, out, x);
      default:
        return copy_as<std::uint64_t, std::uint64_t>(*this, out, x);
    }
  }
  with_float(out.dtype(), [&](auto to) {
    with_float(x.dtype(), [&](auto from) {
      using To = decltype(to);
      using From = decltype(from);
      if constexpr (!std::is_same_v<To, From>) copy_as<To, From>(*this, out, x);
    });
  });
}

void CudaBackend::fill(const Tensor& out, float value) {
  enter("fill");
  const Layout<1> layout = layout_of<1>({&out});
  if (layout.total == 0) return;
  if (value == 0 && !std::signbit(value) && layout.flat()) {
    check(cudaMemsetAsync(out.address(), 0, out.bytes(), stream_), "fill");
    return launched();
  }
  const Grid grid{.x = blocks_for(layout.total, kThreads), .threads = kThreads};
  switch (out.dtype()) {
    case DType::i32:
      return launch(grid, fill_strided<std::int32_t>, out.data<std::int32_t>(), layout,
                    static_cast<std::int32_t>(value));
    case DType::i64:
      return launch(grid, fill_strided<std::int64_t>, out.data<std::int64_t>(), layout,
                    static_cast<std::int64_t>(value));
    case DType::u8:
      return launch(grid, fill_strided<std::uint8_t>, out.data<std::uint8_t>(), layout,
                    static_cast<std::uint8_t>(value));
    default:
      with_float(out.dtype(), [&](auto type) {
        using T = decltype(type);
        launch(grid, fill_strided<T>, out.data<T>(), layout, narrow_to<T>(value));
      });
  }
}

}  // namespace danceflux::cuda
