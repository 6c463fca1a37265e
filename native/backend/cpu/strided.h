// Walking several strided tensors of one shape together, and cutting such walks into tasks.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "backend/cpu/parallel.h"
#include "core/tensor.h"

namespace danceflux::cpu {

/// Work below this many elements is not worth waking a thread for.
constexpr std::int64_t kInlineWork = 32768;
/// Elements of one task.
constexpr std::int64_t kTaskWork = 16384;

/// body(begin, end, worker) over 0 .. items, each item costing about `work` elements. For bodies whose
/// results do not depend on where the cuts are.
template <class Body>
void for_ranges(ThreadPool& threads, std::int64_t items, std::int64_t work, const Body& body) {
  if (items <= 0) return;
  work = std::max<std::int64_t>(work, 1);
  if (threads.threads() == 1 || items <= kInlineWork / work) return body(0, items, 0);
  const std::int64_t grain = std::max<std::int64_t>(kTaskWork / work, 1);
  threads.run((items + grain - 1) / grain, [&](std::int64_t task, int worker) {
    body(task * grain, std::min(items, (task + 1) * grain), worker);
  });
}

/// body(task, worker) for each of a fixed set of tasks, on the calling thread when `work` elements in all are
/// few.
template <class Body>
void for_tasks(ThreadPool& threads, std::int64_t tasks, std::int64_t work, const Body& body) {
  if (threads.threads() == 1 || tasks <= 1 || work <= kInlineWork) {
    for (std::int64_t task = 0; task < tasks; ++task) body(task, 0);
  } else {
    threads.run(tasks, body);
  }
}

/// The axes of N tensors of one shape, outermost first, with axes merged that lie in memory as one in all of
/// them. Always at least one axis.
template <int N>
struct Walk {
  int rank = 0;
  std::int64_t total = 1;
  std::array<std::int64_t, kMaxRank> size;
  std::array<std::array<std::int64_t, kMaxRank>, N> stride;
  using Offsets = std::array<std::int64_t, N>;

  std::int64_t inner() const { return size[static_cast<std::size_t>(rank - 1)]; }
  std::int64_t inner_stride(int tensor) const {
    return stride[static_cast<std::size_t>(tensor)][static_cast<std::size_t>(rank - 1)];
  }

  /// Appends an axis inside the ones there are.
  void push(std::int64_t count, const Offsets& steps) {
    total *= count;
    if (count == 1) return;
    const auto at = static_cast<std::size_t>(rank++);
    size[at] = count;
    for (std::size_t k = 0; k < N; ++k) stride[k][at] = steps[k];
  }

  /// Moves axes of larger stride outwards, the first tensor deciding, the next ones breaking ties. The order
  /// of visits changes.
  void sort_by_stride() {
    for (int i = 1; i < rank; ++i) {
      for (int j = i; j > 0 && outranks(j, j - 1); --j) swap_axes(j, j - 1);
    }
  }

  void merge() {
    int kept = 0;
    for (int i = 1; i < rank; ++i) {
      if (lies_within(kept, i)) {
        absorb(kept, i);
      } else {
        move_axis(i, ++kept);
      }
    }
    if (rank > 0) {
      rank = kept + 1;
    } else {
      rank = 1;
      size[0] = 1;
      for (std::size_t k = 0; k < N; ++k) stride[k][0] = 1;
    }
  }

 private:
  bool outranks(int axis, int other) const {
    for (std::size_t k = 0; k < N; ++k) {
      const std::int64_t mine = stride[k][static_cast<std::size_t>(axis)],
                         its = stride[k][static_cast<std::size_t>(other)];
      if (mine != its) return mine > its;
    }
    return false;
  }
  bool lies_within(int outer, int inner_axis) const {
    const auto o = static_cast<std::size_t>(outer), i = static_cast<std::size_t>(inner_axis);
    for (std::size_t k = 0; k < N; ++k) {
      if (stride[k][o] != stride[k][i] * size[i]) return false;
    }
    return true;
  }
  void absorb(int outer, int inner_axis) {
    const auto o = static_cast<std::size_t>(outer), i = static_cast<std::size_t>(inner_axis);
    size[o] *= size[i];
    for (std::size_t k = 0; k < N; ++k) stride[k][o] = stride[k][i];
  }
  void move_axis(int from, int to) {
    const auto f = static_cast<std::size_t>(from), t = static_cast<std::size_t>(to);
    size[t] = size[f];
    for (std::size_t k = 0; k < N; ++k) stride[k][t] = stride[k][f];
  }
  void swap_axes(int a, int b) {
    const auto i = static_cast<std::size_t>(a), j = static_cast<std::size_t>(b);
    std::swap(size[i], size[j]);
    for (std::size_t k = 0; k < N; ++k) std::swap(stride[k][i], stride[k][j]);
  }
};

/// The first `axes` axes of `tensors`, which have one shape. In row-major order unless `any_order`.
template <int N>
Walk<N> walk_axes(const std::array<const Tensor*, N>& tensors, int axes, bool any_order) {
  Walk<N> walk;
  const std::int64_t* dims = tensors[0]->shape().begin();
  for (int axis = 0; axis < axes; ++axis) {
    typename Walk<N>::Offsets steps;
    for (std::size_t k = 0; k < N; ++k) steps[k] = tensors[k]->strides().begin()[axis];
    walk.push(dims[axis], steps);
  }
  if (any_order) walk.sort_by_stride();
  walk.merge();
  return walk;
}
template <int N>
Walk<N> walk_elements(const std::array<const Tensor*, N>& tensors) {
  return walk_axes<N>(tensors, tensors[0]->rank(), true);
}
/// All axes but the last, in row-major order: item i is row i.
template <int N>
Walk<N> walk_rows(const std::array<const Tensor*, N>& tensors) {
  return walk_axes<N>(tensors, tensors[0]->rank() - 1, false);
}

/// body(offsets, count): items begin .. end as runs along the innermost axis; offsets in elements of each
/// tensor.
template <int N, class Body>
void for_runs(const Walk<N>& walk, std::int64_t begin, std::int64_t end, const Body& body) {
  if (begin >= end) return;
  std::array<std::int64_t, kMaxRank> index;
  typename Walk<N>::Offsets offset{};
  std::int64_t rest = begin;
  for (int axis = walk.rank - 1; axis >= 0; --axis) {
    const auto a = static_cast<std::size_t>(axis);
    index[a] = rest % walk.size[a];
    rest /= walk.size[a];
    for (std::size_t k = 0; k < N; ++k) offset[k] += index[a] * walk.stride[k][a];
  }
  const auto last = static_cast<std::size_t>(walk.rank - 1);
  while (true) {
    const std::int64_t count = std::min(end - begin, walk.size[last] - index[last]);
    body(offset, count);
    begin += count;
    if (begin >= end) return;
    for (std::size_t k = 0; k < N; ++k) offset[k] -= index[last] * walk.stride[k][last];
    index[last] = 0;
    for (std::size_t a = last; a-- > 0;) {  // the next index of the outer axes
      for (std::size_t k = 0; k < N; ++k) offset[k] += walk.stride[k][a];
      if (++index[a] < walk.size[a]) break;
      for (std::size_t k = 0; k < N; ++k) offset[k] -= index[a] * walk.stride[k][a];
      index[a] = 0;
    }
  }
}
/// body(item, offsets) one by one.
template <int N, class Body>
void for_items(const Walk<N>& walk, std::int64_t begin, std::int64_t end, const Body& body) {
  for_runs(walk, begin, end, [&](typename Walk<N>::Offsets offset, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      body(begin++, offset);
      for (std::size_t k = 0; k < N; ++k) offset[k] += walk.inner_stride(static_cast<int>(k));
    }
  });
}

/// Elements of a strided run, to and from dense memory.
template <class T>
void gather_run(T* to, const T* from, std::int64_t stride, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
}
template <class T>
void scatter_run(T* to, std::int64_t stride, const T* from, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i * stride] = from[i];
}

/// kernel(at, n) on dense runs of f32 tensors, the first being written. Runs that are strided pass through a
/// small dense copy; operands whose bit is set in `scalars` may be handed over with step 0.
template <int N, class Kernel>
void run_elementwise(ThreadPool& threads, const Walk<N>& walk, unsigned scalars,
                     const std::array<const Tensor*, N>& tensors, const Kernel& kernel) {
  constexpr std::int64_t kPiece = 256;
  std::array<float*, N> base;
  std::array<bool, N> staged;
  bool dense = true;
  for (std::size_t k = 0; k < N; ++k) {
    base[k] = tensors[k]->template data<float>();
    const std::int64_t step = walk.inner_stride(static_cast<int>(k));
    staged[k] = step != 1 && !(step == 0 && (scalars >> k & 1u));
    dense = dense && !staged[k];
  }
  for_ranges(threads, walk.total, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for_runs(walk, begin, end, [&](const typename Walk<N>::Offsets& offset, std::int64_t count) {
      std::array<float*, N> at;
      for (std::size_t k = 0; k < N; ++k) at[k] = base[k] + offset[k];
      if (dense) return kernel(at, count);
      float stage[N][kPiece];
      for (std::int64_t done = 0; done < count; done += kPiece) {
        const std::int64_t n = std::min(kPiece, count - done);
        std::array<float*, N> piece;
        for (std::size_t k = 0; k < N; ++k) {
          const std::int64_t step = walk.inner_stride(static_cast<int>(k));
          piece[k] = staged[k] ? stage[k] : at[k] + done * step;
          if (staged[k] && k > 0) gather_run(stage[k], at[k] + done * step, step, n);
        }
        kernel(piece, n);
        if (staged[0]) scatter_run(at[0] + done * walk.inner_stride(0), walk.inner_stride(0), stage[0], n);
      }
    });
  });
}

}  // namespace danceflux::cpu
