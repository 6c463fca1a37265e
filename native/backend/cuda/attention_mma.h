// What attention on tensor cores shares, forward and backward: rows of a head in shared memory, and the
// operands of mma_bf16 made of them. W head width, a multiple of 16. A warp has sixteen rows of one side and
// goes through the rows of the other; of each result of sixteen rows a lane holds rows `group` and
// `group + 8`, columns 2 pair and 2 pair + 1 of every eight.
#pragma once
#include "backend/cuda/attention.h"

namespace danceflux::cuda {

/// Every row of a head begins at a multiple of 16 bytes.
inline bool in_packs(const Tensor& x) {
  for (int axis = 0; axis < 3; ++axis)
    if (x.strides()[axis] % 8 != 0) return false;  // also of one image: it must take the way that many take
  return x.strides()[3] == 1 && reinterpret_cast<std::uintptr_t>(x.address()) % 16 == 0;
}

#if !defined(DF_NO_KERNELS)
struct Lane {
  int index, group, pair;
};
DF_DEVICE Lane this_lane() {
  const int index = static_cast<int>(threadIdx.x) % kWarp;
  return {index, index / 4, index % 4};
}

DF_DEVICE std::uint32_t pack_bf16(float low, float high) {
#if defined(__CUDA_ARCH__)
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);  // one instruction
  return *reinterpret_cast<const std::uint32_t*>(&both);
#else
  return std::uint32_t{narrow_to<Bf16>(low).bits} | std::uint32_t{narrow_to<Bf16>(high).bits} << 16;
#endif
}

/// Rows of a head in shared memory. The pad puts eight rows that are read at once into different banks.
template <int W, int kRows>
struct HeadTile {
  alignas(16) Bf16 at[kRows][W + 8];

  /// Begins to bring rows first .. first + kRows - 1 of `count`; those that are not there become zero.
  template <int kThreads>
  DF_DEVICE void fetch(const HeadRows<const Bf16>& rows, std::int64_t b, std::int64_t h, int first,
                       int count) {
    constexpr int kPacks = W / 8;
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kPacks; i += kThreads) {
      const int row = i / kPacks, column = i % kPacks * 8;
      const bool inside = first + row < count;
      copy_async<16>(&at[row][column], rows.row(b, h, inside ? first + row : 0) + column, inside);
    }
  }
  /// A [16, 16]: its rows are rows of the tile.
  DF_DEVICE void left(std::uint32_t (&a)[4], int row, int column) const {
    const int lane = this_lane().index;
    load_matrices(a, &at[row + lane % 16][column + lane / 16 * 8]);
  }
  /// B [16, 16], as two of [16, 8] (b[0], b[1] and b[2], b[3]): its columns are rows of the tile.
  DF_DEVICE void right(std::uint32_t (&b)[4], int row, int column) const {
    const int lane = this_lane().index;
    load_matrices(b, &at[row + lane / 16 * 8 + lane % 8][column + lane / 8 % 2 * 8]);
  }
  /// The same where its rows are rows of the tile.
  DF_DEVICE void right_turned(std::uint32_t (&b)[4], int row, int column) const {
    const int lane = this_lane().index;
    load_matrices_turned(b, &at[row + lane % 16][column + lane / 16 * 8]);
  }
};

/// Sixteen rows of a head in registers, as left operands.
template <int W>
struct HeldRows {
  std::uint32_t at[W / 16][4];

  /// Rows from `count` on are zero.
  DF_DEVICE void read(const HeadRows<const Bf16>& rows, std::int64_t b, std::int64_t h, int first,
                      int count) {
    const auto [lane, group, pair] = this_lane();
    for (int step = 0; step < W / 16; ++step)
      for (int part = 0; part < 4; ++part) {
        const int row = first + group + part % 2 * 8, column = step * 16 + part / 2 * 8 + pair * 2;
        at[step][part] = row < count ? two_of(rows.row(b, h, row) + column) : 0u;
      }
  }
  static DF_DEVICE std::uint32_t two_of(const Bf16* address) {
    return *reinterpret_cast<const std::uint32_t*>(address);
  }
};

/// product [16, kColumns] = held rows times rows `row` .. of the tile, turned.
template <int W, int kRows, int kTiles>
DF_DEVICE void multiply(float (&product)[kTiles][4], const HeldRows<W>& rows, const HeadTile<W, kRows>& tile,
                        int row) {
  for (int n = 0; n < kTiles; ++n)
    for (int i = 0; i < 4; ++i) product[n][i] = 0;
  for (int step = 0; step < W / 16; ++step)
    for (int n = 0; n < kTiles; n += 2) {
      std::uint32_t b[4];
      tile.right(b, row + n * 8, step * 16);
      mma_bf16(product[n], rows.at[step], b[0], b[1]);
      mma_bf16(product[n + 1], rows.at[step], b[2], b[3]);
    }
}

/// total [16, W] += weights [16, 8 kTiles], rounded to bf16, times rows `row` .. of the tile.
template <int W, int kRows, int kTiles>
DF_DEVICE void accumulate(float (&total)[W / 8][4], const float (&weights)[kTiles][4],
                          const HeadTile<W, kRows>& tile, int row) {
  for (int step = 0; step < kTiles / 2; ++step) {
    const float(&low)[4] = weights[2 * step];
    const float(&high)[4] = weights[2 * step + 1];
    const std::uint32_t a[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]),
                                pack_bf16(high[0], high[1]), pack_bf16(high[2], high[3])};
    for (int n = 0; n < W / 8; n += 2) {
      std::uint32_t b[4];
      tile.right_turned(b, row + step * 16, n * 8);
      mma_bf16(total[n], a, b[0], b[1]);
      mma_bf16(total[n + 1], a, b[2], b[3]);
    }
  }
}

/// Sixteen rows of a result, times `scale[half]`: rows from `count` on are not there.
template <int W>
DF_DEVICE void write_rows(const HeadRows<Bf16>& rows, std::int64_t b, std::int64_t h, int first, int count,
                          const float (&total)[W / 8][4], const float (&scale)[2]) {
  const auto [lane, group, pair] = this_lane();
  for (int half = 0; half < 2; ++half) {
    const int row = first + group + half * 8;
    if (row >= count) continue;
    Bf16* to = rows.row(b, h, row) + pair * 2;
    for (int n = 0; n < W / 8; ++n)
      *reinterpret_cast<std::uint32_t*>(to + n * 8) =
          pack_bf16(total[n][half * 2] * scale[half], total[n][half * 2 + 1] * scale[half]);
  }
}

/// The scores of one head: what becomes of the product of query i and key j.
struct Scores {
  const Bf16* bias;
  std::int64_t query_step, key_step;
  float scale;
  int queries, keys;
  bool causal;

  DF_DEVICE Scores(const AttentionShape& s, const ScoreBias<Bf16>& all, std::int64_t b, std::int64_t h)
      : bias(all.base ? all.base + b * all.batch + h * all.head : nullptr),
        query_step(all.query),
        key_step(all.key),
        scale(s.scale),
        queries(static_cast<int>(s.queries)),
        keys(static_cast<int>(s.keys)),
        causal(s.causal) {}

  DF_DEVICE bool has(int i, int j) const { return i < queries && j < keys && !(causal && j > i); }
  /// Only where has(i, j).
  DF_DEVICE float operator()(float product, int i, int j) const {
    const float x = product * scale;
    return bias ? x + widen(bias[i * query_step + j * key_step]) : x;
  }
};
#endif

/// Lengths that these kernels count in int.
inline bool short_enough(const AttentionShape& s) {
  return s.queries < (std::int64_t{1} << 30) && s.keys < (std::int64_t{1} << 30);
}

}  // namespace danceflux::cuda
