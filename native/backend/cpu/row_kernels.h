// The kernels of everything that is not a matrix product: they work on rows that are dense in memory and know
// neither tensors nor threads. One table per instruction set.
//
// Legend: n elements of a row, H heads, K head width. A pointer may equal the output's unless told otherwise.
#pragma once
#include <cstdint>

namespace danceflux::cpu {

// In the order of UnaryOp and BinaryOp (elementwise.cpp holds the two together).
// clang-format off
#define DANCEFLUX_UNARY_OPS(X) \
  X(affine) X(clamp) X(exp) X(log) X(sqrt) X(rsqrt) X(square) X(reciprocal) X(tanh) X(sigmoid) X(silu) \
  X(gelu_tanh) X(gelu_erf) X(quick_gelu)
// clang-format on
#define DANCEFLUX_BINARY_OPS(X) X(add) X(sub) X(mul) X(div) X(max) X(min)

#define DANCEFLUX_COUNT_ONE(name) +1
constexpr int kUnaryOps = 0 DANCEFLUX_UNARY_OPS(DANCEFLUX_COUNT_ONE);
constexpr int kBinaryOps = 0 DANCEFLUX_BINARY_OPS(DANCEFLUX_COUNT_ONE);

/// Which operand of a binary kernel is one number for the whole row.
enum RowOperands { kBothRows, kScalarB, kScalarA, kRowOperands };

/// Dense rows that lie `step` elements apart. Kernels that take several work on a few of them at a time: what
/// one row's sums wait for, the next row's can be computed in.
struct Rows {
  float* base;
  std::int64_t step;
};
struct ConstRows {
  const float* base;
  std::int64_t step;
};

/// A row's step along a flow: mean = x * cx + v * cv.
struct FlowRow {
  float cx, cv, std;
};

struct ElementwiseRows {
  using Unary = void (*)(float* out, const float* x, std::int64_t n, float a, float b);
  using UnaryBackward = void (*)(float* dx, const float* x, const float* dy, std::int64_t n, float a,
                                 float b);
  using Binary = void (*)(float* out, const float* a, const float* b, std::int64_t n, float b_scale);
  Unary unary[kUnaryOps];
  UnaryBackward unary_backward[kUnaryOps];
  Binary binary[kBinaryOps][kRowOperands];
  /// out = x + gate * y
  void (*gated_add)(float* out, const float* x, const float* gate, const float* y, std::int64_t n);
  /// dy = gate * dout; dgate += sum over the rows of dout * y
  void (*gated_add_backward)(float* dgate, Rows dy, ConstRows dout, const float* gate, ConstRows y,
                             std::int64_t rows, std::int64_t n);
  void (*fill)(float* out, float value, std::int64_t n);
  /// next = (x * cx + v * cv) + noise * std; noise may be null
  void (*flow_step)(float* next, const float* x, const float* v, const float* noise, const FlowRow& row,
                    std::int64_t n);
  /// out = (next - mean)^2
  void (*flow_distance)(float* out, const float* x, const float* v, const float* next, const FlowRow& row,
                        std::int64_t n);
  /// d = 2 (next - mean) * slope; dx = -d * cx, dv = -d * cv, either may be null
  void (*flow_backward)(float* dx, float* dv, const float* x, const float* v, const float* next,
                        const FlowRow& row, float slope, std::int64_t n);
};

/// AdamW's numbers of one step, from doubles.
struct AdamWStep {
  float gradient_scale, decay, beta2, one_minus_beta1, one_minus_beta2, root_correction2, eps, step_size;
};

struct ConvertRows {
  /// [to][from] in the order f32, bf16, f16, f64.
  void (*convert[4][4])(void* out, const void* x, std::int64_t n);
  /// out[i * out_step + j] = x[j * x_step + i], i < rows, j < columns; elements of 1, 2, 4, 8 bytes. Does not
  /// overlap.
  void (*transpose[4])(void* out, std::int64_t out_step, const void* x, std::int64_t x_step,
                       std::int64_t rows, std::int64_t columns);
  /// [dtype of parameter: f32, bf16, f16]
  void (*adamw[3])(void* parameter, float* master, float* m, float* v, const float* gradient, std::int64_t n,
                   const AdamWStep& step);
};

/// What a reduction folds with.
enum RowFold { kFoldSum, kFoldMax, kFoldSquares, kRowFolds };

struct ReduceRows {
  /// One number of a row; blocks of fixed length in f32, their sums in f64.
  double (*row[kRowFolds])(const float* x, std::int64_t n);
  /// out[j] = fold of x[i * x_step + j] over i < rows, in a fixed order and in f32; rows >= 1.
  void (*columns[kRowFolds])(float* out, const float* x, std::int64_t x_step, std::int64_t rows,
                             std::int64_t n);
  void (*softmax)(Rows out, ConstRows x, std::int64_t rows, std::int64_t n);
  void (*softmax_backward)(Rows dx, ConstRows y, ConstRows dy, std::int64_t rows, std::int64_t n);
};

/// Mean and sum of squared deviations of n numbers, in a form that joins with others.
struct Moments {
  double mean, squares;
};

struct NormRows {
  Moments (*moments)(const float* x, std::int64_t n);
  /// out = (x - mean) * rstd * weight + bias, by each row's own mean and rstd = 1 / sqrt(variance + eps),
  /// which are left in mean and rstd [rows]; weight and bias [n] may be null.
  void (*layer)(Rows out, float* mean, float* rstd, ConstRows x, std::int64_t rows, std::int64_t n,
                const float* weight, const float* bias, float eps);
  /// The same without the mean: out = x * rstd * weight + bias, rstd = 1 / sqrt(mean of squares + eps).
  void (*rms)(Rows out, float* rstd, ConstRows x, std::int64_t rows, std::int64_t n, const float* weight,
              const float* bias, float eps);
  /// Adds the rows' share to dweight and dbias (either may be null). mean is null for rms.
  void (*backward)(Rows dx, float* dweight, float* dbias, ConstRows dy, ConstRows x, std::int64_t rows,
                   std::int64_t n, const float* mean, const float* rstd, const float* weight);
  /// A stretch of one channel: one weight and bias for all of it.
  void (*channel)(float* out, const float* x, std::int64_t n, float mean, float rstd, float weight,
                  float bias, bool silu);
  /// Sums of dy and of dy * (x - mean) * rstd.
  void (*channel_sums)(double* dy_sum, double* dy_x_sum, const float* dy, const float* x, std::int64_t n,
                       float mean, float rstd);
  /// dx = rstd * (weight * dy - dy_mean - (x - mean) * rstd * dy_x_mean)
  void (*channel_backward)(float* dx, const float* dy, const float* x, std::int64_t n, float mean, float rstd,
                           float weight, float dy_mean, float dy_x_mean);
};

/// K of qk_norm_rope kernels is at most this.
constexpr std::int64_t kMaxHeadWidth = 512;

/// Heads of one token, rows of K = width. cos and sin [K / 2].
struct RopeRows {
  void (*rope)(Rows out, ConstRows x, std::int64_t heads, std::int64_t width, const float* cos,
               const float* sin, bool inverse);
  void (*qk_norm_rope)(Rows out, float* rstd, ConstRows x, std::int64_t heads, std::int64_t width,
                       const float* weight, const float* cos, const float* sin, float eps);
  /// Adds the token's share to dweight [K].
  void (*qk_norm_rope_backward)(Rows dx, float* dweight, ConstRows dout, ConstRows x, const float* rstd,
                                std::int64_t heads, std::int64_t width, const float* weight, const float* cos,
                                const float* sin);
};

struct RowKernels {
  const ElementwiseRows* elementwise;
  const ConvertRows* convert;
  const ReduceRows* reduce;
  const NormRows* norm;
  const RopeRows* rope;
};

#ifdef DANCEFLUX_ISA_NAMESPACE
namespace DANCEFLUX_ISA_NAMESPACE {
extern const ElementwiseRows elementwise_rows;
extern const ConvertRows convert_rows;
extern const ReduceRows reduce_rows;
extern const NormRows norm_rows;
extern const RopeRows rope_rows;
const RowKernels& row_kernels();
}  // namespace DANCEFLUX_ISA_NAMESPACE
#endif

}  // namespace danceflux::cpu
