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

// kScattered: row k of B lies at its own offset.
template <int M, int V, bool kScattered>
void tile(const StripArgs& t, const float* a, int64_t first_row) {
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
  for (int64_t k = 0; k < t.depth; ++k) {
    if constexpr (kScattered) b = t.b + t.b_offsets[k];
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
    if constexpr (!kScattered) b += b_step;
  }
  if (t.columns == V * kLanes)
    finish_full<M, V>(sum, t, first_row, c);
  else
    finish_edge<M, V>(sum, t, first_row, c);
}

template <int V, bool kScattered>
void strip_of(const StripArgs& t) {
  using Tile = void (*)(const StripArgs&, const float*, int64_t);
  static constexpr Tile kTiles[kRows] = {
#define DANCEFLUX_TILE(m) tile<(m <= kRows ? m : 1), V, kScattered>
    DANCEFLUX_TILE(1),
    DANCEFLUX_TILE(2),
    DANCEFLUX_TILE(3),
    DANCEFLUX_TILE(4),
#if !DANCEFLUX_ISA_PORTABLE
    DANCEFLUX_TILE(5),
    DANCEFLUX_TILE(6),
#endif
#if DANCEFLUX_ISA_NEON || DANCEFLUX_ISA_AVX512
    DANCEFLUX_TILE(7),
    DANCEFLUX_TILE(8),
#endif
#if DANCEFLUX_ISA_AVX512
    DANCEFLUX_TILE(9),
    DANCEFLUX_TILE(10),
    DANCEFLUX_TILE(11),
    DANCEFLUX_TILE(12),
#endif
  };
  if (t.a_tile != kRows * t.a_row) {  // slivers of kRows each
    for (int64_t row = 0; row < t.rows; row += kRows)
      kTiles[t.rows - row < kRows ? t.rows - row - 1 : kRows - 1](t, t.a + row / kRows * t.a_tile, row);
    return;
  }
  // rows of one spacing: the last tiles share what is left, for a low tile wastes registers
  for (int64_t row = 0, left = (t.rows + kRows - 1) / kRows; left > 0; --left) {
    const int64_t rows = (t.rows - row + left - 1) / left;
    kTiles[rows - 1](t, t.a + row * t.a_row, row);
    row += rows;
  }
}

template <bool kScattered>
void strip_columns(const StripArgs& t) {
  if (t.columns > (kVectors - 1) * kLanes) return strip_of<kVectors, kScattered>(t);
  if constexpr (kVectors > 2)
    if (t.columns > kLanes) return strip_of<2, kScattered>(t);
  strip_of<1, kScattered>(t);
}

void strip(const StripArgs& t) { t.b_offsets ? strip_columns<true>(t) : strip_columns<false>(t); }

}  // namespace

extern const GemmKernels gemm_kernels;
const GemmKernels gemm_kernels = {kRows,     kColumns,    kLanes,    strip,      pack_interleaved,
                                  pack_rows, pack_pixels, pack_taps, copy_planes};

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
