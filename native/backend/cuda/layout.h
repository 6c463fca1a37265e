// Where the elements of several tensors of one shape lie, as kernels see it: axes of size one dropped,
// neighbours that lie in memory as one merged.
#pragma once
#include <array>
#include <cstdint>

#include "backend/cuda/device_code.h"
#include "core/tensor.h"

namespace danceflux::cuda {

template <int N>
struct Layout {
  int rank = 0;
  std::int64_t total = 1;
  std::int64_t size[kMaxRank] = {};
  std::int64_t stride[N][kMaxRank] = {};

  /// Offsets of element `i` in row-major order.
  DF_BOTH void offsets(std::int64_t i, std::int64_t (&offset)[N]) const {
    for (int k = 0; k < N; ++k) offset[k] = 0;
    if (total < (std::int64_t{1} << 31)) {  // 64-bit divisions are many times slower
      auto rest = static_cast<std::uint32_t>(i);
      for (int axis = rank - 1; axis > 0; --axis) {
        const auto count = static_cast<std::uint32_t>(size[axis]);
        const std::uint32_t outer = rest / count, at = rest - outer * count;
        for (int k = 0; k < N; ++k) offset[k] += at * stride[k][axis];
        rest = outer;
      }
      for (int k = 0; k < N; ++k) offset[k] += rest * stride[k][0];
      return;
    }
    for (int axis = rank - 1; axis > 0; --axis) {
      const std::int64_t outer = i / size[axis], at = i - outer * size[axis];
      for (int k = 0; k < N; ++k) offset[k] += at * stride[k][axis];
      i = outer;
    }
    for (int k = 0; k < N; ++k) offset[k] += i * stride[k][0];
  }

  /// All of them dense and in one order.
  bool flat() const {
    if (rank == 0) return true;
    for (int k = 0; k < N; ++k)
      if (rank != 1 || stride[k][0] != 1) return false;
    return true;
  }

  void push(std::int64_t count, const std::array<std::int64_t, N>& steps) {
    total *= count;
    if (count == 1) return;
    if (rank > 0) {
      bool one = true;
      for (int k = 0; k < N; ++k)
        one = one && stride[k][rank - 1] == steps[static_cast<std::size_t>(k)] * count;
      if (one) {
        size[rank - 1] *= count;
        for (int k = 0; k < N; ++k) stride[k][rank - 1] = steps[static_cast<std::size_t>(k)];
        return;
      }
    }
    size[rank] = count;
    for (int k = 0; k < N; ++k) stride[k][rank] = steps[static_cast<std::size_t>(k)];
    ++rank;
  }
};

/// Axes first .. last-1 of tensors that share them.
template <int N>
Layout<N> layout_of(const std::array<const Tensor*, N>& tensors, int first, int last) {
  Layout<N> layout;
  for (int axis = first; axis < last; ++axis) {
    std::array<std::int64_t, N> steps;
    for (std::size_t k = 0; k < N; ++k) steps[k] = tensors[k]->strides()[axis];
    layout.push(tensors[0]->dim(axis), steps);
  }
  return layout;
}
template <int N>
Layout<N> layout_of(const std::array<const Tensor*, N>& tensors) {
  return layout_of<N>(tensors, 0, tensors[0]->rank());
}

/// Rows along the last axis of tensors of one shape.
template <int N>
struct RowLayout {
  Layout<N> rows;
  std::int64_t width = 0;
  std::int64_t step[N] = {};
  bool packs = false;  // 16 bytes at a time may be read and written in all of them
};

template <int N>
RowLayout<N> rows_of(const std::array<const Tensor*, N>& tensors) {
  RowLayout<N> layout;
  const Tensor& first = *tensors[0];
  const int last = first.rank() - 1;
  layout.rows = layout_of<N>(tensors, 0, last);
  layout.width = first.dim(last);
  layout.packs = true;
  for (std::size_t k = 0; k < N; ++k) {
    const auto size = static_cast<std::int64_t>(size_of(tensors[k]->dtype()));
    layout.step[k] = tensors[k]->strides()[last];
    bool aligned = layout.step[k] == 1 && layout.width * size % 16 == 0 &&
                   reinterpret_cast<std::uintptr_t>(tensors[k]->address()) % 16 == 0;
    for (int axis = 0; axis < layout.rows.rank; ++axis)
      aligned = aligned && layout.rows.stride[k][axis] * size % 16 == 0;
    layout.packs = layout.packs && aligned;
  }
  return layout;
}

#if !defined(DF_NO_KERNELS)
// ---- sixteen bytes at a time
// ----------------------------------------------------------------------------------------
template <class T>
struct alignas(16) Pack {
  static constexpr int kCount = 16 / static_cast<int>(sizeof(T));
  T value[kCount];
};

/// One row of an operand. A pack's elements always go together, whether they can be read at once or not, so
/// that which thread sums what does not depend on alignment.
template <class T>
struct Row {
  T* base;
  std::int64_t step, width;
  bool packs;

  DF_DEVICE void load(std::int64_t at, float (&v)[Pack<T>::kCount], float absent = 0.0f) const {
    if (packs) {
      const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(base + at);
      for (int j = 0; j < Pack<T>::kCount; ++j) v[j] = widen(pack.value[j]);
    } else {
      for (int j = 0; j < Pack<T>::kCount; ++j) v[j] = at + j < width ? widen(base[(at + j) * step]) : absent;
    }
  }
  DF_DEVICE void store(std::int64_t at, const float (&v)[Pack<T>::kCount]) const {
    if (packs) {
      Pack<T> pack;
      for (int j = 0; j < Pack<T>::kCount; ++j) pack.value[j] = narrow_to<T>(v[j]);
      *reinterpret_cast<Pack<T>*>(base + at) = pack;
    } else {
      for (int j = 0; j < Pack<T>::kCount; ++j)
        if (at + j < width) base[(at + j) * step] = narrow_to<T>(v[j]);
    }
  }
};

/// Threads that share a row: a warp each when rows are short, else the block. Blocks have kRowBlock threads.
constexpr int kRowBlock = 256;
template <int kThreads>
struct RowTeam {
  static constexpr int kRows = kRowBlock / kThreads;
  static DF_DEVICE std::int64_t row() { return std::int64_t{blockIdx.x} * kRows + threadIdx.x / kThreads; }
  static DF_DEVICE int lane() { return static_cast<int>(threadIdx.x) % kThreads; }
  /// The whole of what the row's threads have, to all of them, in a fixed order.
  template <class Fold>
  static DF_DEVICE float fold(float value, float* parts) {
    return kThreads == kWarp ? fold_warp<Fold>(value) : fold_block<Fold>(value, parts);
  }
};
#endif

}  // namespace danceflux::cuda
