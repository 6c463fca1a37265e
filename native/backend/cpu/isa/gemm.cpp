// The register tile of matrix products: kRows x (kVectors * kLanes) sums held in registers over one block of
// K.
#include "backend/cpu/gemm_kernels.h"
#include "backend/cpu/isa/gemm_kernels_isa.h"
#include "backend/cpu/isa/register_tile.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

template <int M, int V>
DF_INLINE void finish_full(const Vec (&sum)[M][V], const StripArgs& t, int64_t row_index, float* c) {
  const Vec alpha = splat(t.alpha);
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
    float* row = c + i * t.c_row;
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) {
      Vec value = fma(alpha, sum[i][j], t.load_c ? load(row + j * kLanes) : zero());
      if (t.column_bias) value = value + load(t.column_bias + j * kLanes);
      if (t.row_bias) value = value + splat(t.row_bias[row_index + i]);
      store(row + j * kLanes, value);
    }
  }
}

// The right edge: the same arithmetic on vectors that are loaded and stored in part.
template <int M, int V>
DF_INLINE void finish_edge(const Vec (&sum)[M][V], const StripArgs& t, int64_t row_index, float* c) {
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) {
      const int64_t count = t.columns - j * kLanes;
      float* at = c + i * t.c_row + j * kLanes;
      const auto read = [count](const float* p) { return count >= kLanes ? load(p) : load_tail(p, count); };
      Vec value = fma(splat(t.alpha), sum[i][j], t.load_c ? read(at) : zero());
      if (t.column_bias) value = value + read(t.column_bias + j * kLanes);
      if (t.row_bias) value = value + splat(t.row_bias[row_index + i]);
      count >= kLanes ? store(at, value) : store_tail(at, value, count);
    }
}

template <int M, int V>
void tile(const StripArgs& t, int64_t first_row) {
  const float* a = t.a + first_row / kRows * t.a_tile;
  float* c = t.c + first_row * t.c_row;
  // C is far away: its lines travel while the sums are made
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
    __builtin_prefetch(c + i * t.c_row, 1);
    __builtin_prefetch(c + i * t.c_row + (V * kLanes - 1), 1);
  }
  Vec sum[M][V];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) sum[i][j] = zero();
  const int64_t row = t.a_row, step = t.a_depth, b_step = t.b_depth;
  const float* b = t.b;
  // one pointer for three rows: two more are reached by the addressing mode
  const float* group[(M + 2) / 3];
#pragma GCC unroll 8
  for (int g = 0; g < (M + 2) / 3; ++g) group[g] = a + 3 * g * row;
  for (int64_t k = t.depth; k > 0; --k) {
    Vec columns[V];
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) columns[j] = load(b + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const Vec scale = splat(group[i / 3][(i % 3) * row]);
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) sum[i][j] = fma(scale, columns[j], sum[i][j]);
    }
#pragma GCC unroll 8
    for (int g = 0; g < (M + 2) / 3; ++g) group[g] += step;
    b += b_step;
  }
  if (t.columns == V * kLanes)
    finish_full<M, V>(sum, t, first_row, c);
  else
    finish_edge<M, V>(sum, t, first_row, c);
}

template <int V>
void strip_of(const StripArgs& t) {
  using Tile = void (*)(const StripArgs&, int64_t);
  static constexpr Tile kTail[kRows] = {
#define DANCEFLUX_TAIL(m) tile<(m <= kRows ? m : 1), V>
    DANCEFLUX_TAIL(1),
    DANCEFLUX_TAIL(2),
    DANCEFLUX_TAIL(3),
    DANCEFLUX_TAIL(4),
#if !DANCEFLUX_ISA_PORTABLE
    DANCEFLUX_TAIL(5),
    DANCEFLUX_TAIL(6),
#endif
#if DANCEFLUX_ISA_NEON || DANCEFLUX_ISA_AVX512
    DANCEFLUX_TAIL(7),
    DANCEFLUX_TAIL(8),
#endif
#if DANCEFLUX_ISA_AVX512
    DANCEFLUX_TAIL(9),
    DANCEFLUX_TAIL(10),
    DANCEFLUX_TAIL(11),
    DANCEFLUX_TAIL(12),
#endif
  };
  int64_t row = 0;
  for (; row + kRows <= t.rows; row += kRows) tile<kRows, V>(t, row);
  if (row < t.rows) kTail[t.rows - row - 1](t, row);
}

void strip(const StripArgs& t) {
  if (t.columns > (kVectors - 1) * kLanes) return strip_of<kVectors>(t);
  if constexpr (kVectors > 2)
    if (t.columns > kLanes) return strip_of<2>(t);
  strip_of<1>(t);
}

}  // namespace

extern const GemmKernels gemm_kernels;
const GemmKernels gemm_kernels = {kRows,     kColumns,    kLanes,   strip, pack_interleaved,
                                  pack_rows, pack_pixels, pack_taps};

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
