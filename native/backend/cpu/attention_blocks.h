// What attention forward and backward share: where heads lie, how queries and keys are cut, products of
// packed blocks.
//
// B batch, Lq and Lk tokens, H heads, K head width.
#pragma once
#include <algorithm>
#include <cstdint>

#include "backend/backend.h"
#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/gemm_kernels.h"
#include "backend/cpu/scratch.h"

namespace danceflux::cpu {

inline std::int64_t round_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b * b; }

/// The rows of one head: [tokens, K], K dense.
struct HeadRows {
  float* data;
  std::int64_t stride;
  float* row(std::int64_t token) const { return data + token * stride; }
};

inline HeadRows head_of(const Tensor& x, std::int64_t batch, std::int64_t head) {
  return {x.data<float>() + batch * x.strides()[0] + head * x.strides()[2], x.strides()[1]};
}

/// Tokens cut into nearly equal blocks of at most `most`: a function of the number of tokens alone, so that
/// sums over tokens have one order.
struct Blocks {
  std::int64_t tokens, size;
  Blocks(std::int64_t all, std::int64_t most) : tokens(all), size(most) {
    if (all > 0) size = std::min(most, round_up((all - 1) / ((all - 1) / most + 1) + 1, 16));
  }
  std::int64_t count() const { return (tokens + size - 1) / size; }
  std::int64_t first(std::int64_t block) const { return block * size; }
  std::int64_t length(std::int64_t block) const { return std::min(size, tokens - block * size); }
};

/// The bias of one query row, from key `first` on. Rows that are not dense are copied to `room`.
struct BiasRows {
  const float* data = nullptr;
  std::int64_t query_stride = 0, key_stride = 0;

  BiasRows(const Tensor& bias, std::int64_t batch, std::int64_t head) {
    if (!bias.defined()) return;
    data = bias.data<float>() + (bias.dim(0) == 1 ? 0 : batch * bias.strides()[0]) + head * bias.strides()[1];
    query_stride = bias.strides()[2], key_stride = bias.strides()[3];
  }
  const float* row(std::int64_t query, std::int64_t first, std::int64_t keys, float* room) const {
    if (!data) return nullptr;
    const float* from = data + query * query_stride + first * key_stride;
    if (key_stride == 1) return from;
    for (std::int64_t key = 0; key < keys; ++key) room[key] = from[key * key_stride];
    return room;
  }
};

/// Left operand of a block product, as it lies in memory.
struct Left {
  const float* data;
  std::int64_t row, depth;
};

/// c (+)= alpha * left @ right, right packed in slivers of columns.
inline void block_product(const GemmKernels& kernels, float* c, std::int64_t c_row, std::int64_t rows,
                          std::int64_t columns, std::int64_t depth, const Left& left, const float* right,
                          float alpha, bool load_c) {
  StripArgs strip{};
  strip.rows = rows, strip.depth = depth;
  strip.a = left.data, strip.a_row = left.row, strip.a_depth = left.depth,
  strip.a_tile = kernels.mr * left.row;
  strip.b_depth = kernels.nr;
  strip.c_row = c_row, strip.alpha = alpha, strip.load_c = load_c;
  for (std::int64_t column = 0; column < columns; column += kernels.nr) {
    strip.columns = std::min<std::int64_t>(kernels.nr, columns - column);
    strip.b = right + column * depth;
    strip.c = c + column;
    kernels.strip(strip);
  }
}

/// Rows of a head as columns of a right operand: depth is K.
inline void pack_tokens(const GemmKernels& kernels, float* to, const HeadRows& rows, std::int64_t first,
                        std::int64_t tokens, std::int64_t width) {
  kernels.pack_interleaved(to, kernels.nr, kernels.nr * width, {rows.row(first), Store::f32, rows.stride, 1},
                           tokens, width);
}
/// Columns of K as columns of a right operand: depth runs over tokens.
inline void pack_width(const GemmKernels& kernels, float* to, const HeadRows& rows, std::int64_t first,
                       std::int64_t tokens, std::int64_t width) {
  kernels.pack_interleaved(to, kernels.nr, kernels.nr * tokens, {rows.row(first), Store::f32, 1, rows.stride},
                           width, tokens);
}
/// Rows of a head, dense, as a left operand: rows of equal length that do not all fall on the same lines of
/// the cache.
inline std::int64_t left_row(std::int64_t width) { return round_up(width, 16) + 16; }
inline Left copy_left(const GemmKernels& kernels, float* to, const HeadRows& rows, std::int64_t first,
                      std::int64_t tokens, std::int64_t width) {
  kernels.pack_rows(to, left_row(width), {rows.row(first), Store::f32, rows.stride, 1}, tokens, width);
  return {to, left_row(width), 1};
}

/// Hands out pieces of a worker's memory; with a null base it only counts.
class Carver {
 public:
  explicit Carver(float* base) : base_(base) {}
  float* take(std::int64_t floats) {
    float* piece = base_ ? base_ + taken_ : nullptr;
    taken_ += round_up(floats, 16);
    return piece;
  }
  std::size_t bytes() const { return static_cast<std::size_t>(taken_) * sizeof(float); }

 private:
  float* base_;
  std::int64_t taken_ = 0;
};

/// Empty when the kernels can read these tensors.
Declined check_attention_layout(std::initializer_list<const Tensor*> tensors, std::int64_t width);

}  // namespace danceflux::cpu
