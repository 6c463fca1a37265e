// The aclnn operators that the backend calls, each with the parameters of its first phase as CANN 8.1
// declares them. Signatures only ever grow by new names (V2, V3), so a symbol that is there has these. Each
// operator is two functions, aclnnX and aclnnXGetWorkspaceSize; it is there when both are.
#pragma once
#include "backend/ascend/acl.h"

namespace danceflux::ascend {

using In = const aclTensor*;  // optional where the operator says so: null
using Out = aclTensor*;       // written, or read and written (Inplace...)
using Ints = const aclIntArray*;
using Bools = const aclBoolArray*;
using Number = const aclScalar*;
using Text = char*;
using i8 = std::int8_t;
using i32 = std::int32_t;
using i64 = std::int64_t;
using f32 = float;
using f64 = double;

/// What was found of an operator.
struct OperatorSymbols {
  const char* name;
  void* plan = nullptr;     // aclnnXGetWorkspaceSize
  void* execute = nullptr;  // aclnnX
  const char* library = "";

  bool found() const { return plan && execute; }
};

template <class Signature>
struct Operator;
/// How its first phase is called.
template <class... Parameters>
struct Operator<void(Parameters...)> : OperatorSymbols {
  using Plan = AclStatus (*)(Parameters..., std::uint64_t* workspace, aclOpExecutor** executor);
};
using Execute = AclStatus (*)(void* workspace, std::uint64_t bytes, aclOpExecutor* executor,
                              AclStream stream);

// X(name, (parameters))
#define DANCEFLUX_ACLNN_MATRIX(X)                                                                           \
  X(aclnnMm, (In a, In b, Out out, i8 cube))                                                                \
  X(aclnnMatmul, (In a, In b, Out out, i8 cube))                                                            \
  X(aclnnAddmm, (In bias, In a, In b, Number beta, Number alpha, Out out, i8 cube))                         \
  X(aclnnInplaceAddmm, (Out sum, In a, In b, Number beta, Number alpha, i8 cube))                           \
  X(aclnnConvolution, (In x, In weight, In bias, Ints stride, Ints padding, Ints dilation, bool transposed, \
                       Ints output_padding, i64 groups, Out out, i8 cube))                                  \
  X(aclnnConvolutionBackward,                                                                               \
    (In dy, In x, In weight, Ints bias_sizes, Ints stride, Ints padding, Ints dilation, bool transposed,    \
     Ints output_padding, int groups, Bools mask, i8 cube, Out dx, Out dweight, Out dbias))

#define DANCEFLUX_ACLNN_NORM(X)                                                                          \
  X(aclnnLayerNorm, (In x, Ints shape, In weight, In bias, f64 eps, Out out, Out mean, Out rstd))        \
  X(aclnnLayerNormBackward, (In dy, In x, Ints shape, In mean, In rstd, In weight, In bias, Bools mask,  \
                             Out dx, Out dweight, Out dbias))                                            \
  X(aclnnRmsNorm, (In x, In gamma, f64 eps, Out out, Out rstd))                                          \
  X(aclnnRmsNormGrad, (In dy, In x, In rstd, In gamma, Out dx, Out dgamma))                              \
  X(aclnnGroupNorm,                                                                                      \
    (In x, In gamma, In beta, i64 N, i64 C, i64 HxW, i64 groups, f64 eps, Out out, Out mean, Out rstd))  \
  X(aclnnGroupNormSilu, (In x, In gamma, In beta, i64 groups, f64 eps, Out out, Out mean, Out rstd))     \
  X(aclnnGroupNormBackward, (In dy, In x, In mean, In rstd, In gamma, i64 N, i64 C, i64 HxW, i64 groups, \
                             Bools mask, Out dx, Out dgamma, Out dbeta))

// Attention and the rotation of queries and keys. BSND: batch, tokens, heads, head width.
#define DANCEFLUX_ACLNN_ATTENTION(X)                                                                      \
  X(aclnnFlashAttentionScore,                                                                             \
    (In q, In k, In v, In bias, In drop_mask, In padding_mask, In mask, Ints prefix, f64 scale, f64 keep, \
     i64 previous, i64 next, i64 heads, Text layout, i64 inner_precise, i64 sparse_mode, Out softmax_max, \
     Out softmax_sum, Out softmax_out, Out out))                                                          \
  X(aclnnFlashAttentionScoreGrad,                                                                         \
    (In q, In k, In v, In dy, In bias, In drop_mask, In padding_mask, In mask, In softmax_max,            \
     In softmax_sum, In softmax_in, In out, Ints prefix, f64 scale, f64 keep, i64 previous, i64 next,     \
     i64 heads, Text layout, i64 inner_precise, i64 sparse_mode, Out dq, Out dk, Out dv, Out dbias))      \
  X(aclnnRotaryPositionEmbedding, (In x, In cos, In sin, i64 mode, Out out))

#define DANCEFLUX_ACLNN_ELEMENTS(X)                               \
  X(aclnnInplaceCopy, (Out to, In from))                          \
  X(aclnnInplaceFillScalar, (Out x, Number value))                \
  X(aclnnAdd, (In a, In b, Number alpha, Out out))                \
  X(aclnnSub, (In a, In b, Number alpha, Out out))                \
  X(aclnnMul, (In a, In b, Out out))                              \
  X(aclnnDiv, (In a, In b, Out out))                              \
  X(aclnnMaximum, (In a, In b, Out out))                          \
  X(aclnnMinimum, (In a, In b, Out out))                          \
  X(aclnnAdds, (In x, Number other, Number alpha, Out out))       \
  X(aclnnMuls, (In x, Number factor, Out out))                    \
  X(aclnnAddcmul, (In x, In a, In b, Number value, Out out))      \
  X(aclnnClamp, (In x, Number low, Number high, Out out))         \
  X(aclnnExp, (In x, Out out))                                    \
  X(aclnnLog, (In x, Out out))                                    \
  X(aclnnSqrt, (In x, Out out))                                   \
  X(aclnnRsqrt, (In x, Out out))                                  \
  X(aclnnReciprocal, (In x, Out out))                             \
  X(aclnnTanh, (In x, Out out))                                   \
  X(aclnnTanhBackward, (In dy, In y, Out dx))                     \
  X(aclnnSigmoid, (In x, Out out))                                \
  X(aclnnSigmoidBackward, (In dy, In y, Out dx))                  \
  X(aclnnSilu, (In x, Out out))                                   \
  X(aclnnSiluBackward, (In dy, In x, Out dx))                     \
  X(aclnnGeluV2, (In x, i64 approximate, Out out))                \
  X(aclnnGeluBackwardV2, (In dy, In x, Text approximate, Out dx)) \
  X(aclnnSwish, (In x, Number beta, Out out))                     \
  X(aclnnSwishBackward, (In dy, In x, Number beta, Out dx))

#define DANCEFLUX_ACLNN_ROWS(X)                                                                             \
  X(aclnnReduceSum, (In x, Ints axes, bool keep, AclDataType dtype, Out out))                               \
  X(aclnnMean, (In x, Ints axes, bool keep, AclDataType dtype, Out out))                                    \
  X(aclnnAmax, (In x, Ints axes, bool keep, Out out))                                                       \
  X(aclnnSoftmaxBackward, (In dy, In y, i64 axis, Out dx))                                                  \
  X(aclnnEmbedding, (In table, In ids, Out out))                                                            \
  X(aclnnIndexAdd, (In x, i64 axis, In ids, In rows, Number alpha, Out out))                                \
  X(aclnnApplyAdamWV2, (Out parameter, Out m, Out v, Out max_norm, In gradient, In step, f32 lr, f32 beta1, \
                        f32 beta2, f32 weight_decay, f32 eps, bool amsgrad, bool maximize))

#define DANCEFLUX_ACLNN_OPERATORS(X) \
  DANCEFLUX_ACLNN_MATRIX(X)          \
  DANCEFLUX_ACLNN_NORM(X) DANCEFLUX_ACLNN_ATTENTION(X) DANCEFLUX_ACLNN_ELEMENTS(X) DANCEFLUX_ACLNN_ROWS(X)

struct Operators {
#define DF_MEMBER(name, parameters) Operator<void parameters> name{{#name}};
  DANCEFLUX_ACLNN_OPERATORS(DF_MEMBER)
#undef DF_MEMBER

  template <class Visit>
  void for_each(Visit visit) {
#define DF_VISIT(name, parameters) visit(name);
    DANCEFLUX_ACLNN_OPERATORS(DF_VISIT)
#undef DF_VISIT
  }
};

/// Rotary modes: FLUX pairs adjacent channels. The other one turns channel i with i + K/2, and its pictures
/// are broken while every number looks sound.
enum RotaryMode : i64 { kRotaryHalf = 0, kRotaryInterleave = 1 };
enum GeluApproximation : i64 { kGeluErf = 0, kGeluTanh = 1 };

}  // namespace danceflux::ascend
