// cubeMathType: what the matrix unit may do to its inputs.
#pragma once
#include "ascend_double/ops/dense.h"

namespace ascend_double {

enum class Precision : std::uint8_t { exact, hf32, f16 };

/// HF32 keeps 11 bits of the mantissa.
inline float hf32(float value) { return float_of((bits_of(value) + 0x800) & ~0xfffu); }

/// Types 1 and 3 run f32 inputs in HF32 without a word; 2 runs them in f16 and is refused for BF16; 0 is
/// refused for f32 on chips whose matrix unit has none.
inline Precision precision_of(Plan& plan, int cube_math_type, aclDataType dtype) {
  plan.require(cube_math_type >= KEEP_DTYPE && cube_math_type <= (layout() >= 9 ? USE_FP32_ADD : USE_HF32),
               "cubeMathType %d", cube_math_type);
  if (cube_math_type == USE_FP16) {
    plan.require(dtype != ACL_BF16, "cubeMathType 2 (f16) does not take BF16");
    return Precision::f16;
  }
  const bool old = soc().generation == 1 || soc().generation == 310;
  if (dtype != ACL_FLOAT) return Precision::exact;
  plan.require(!old || cube_math_type != KEEP_DTYPE,
               "%s has no f32 matrix unit: cubeMathType 0 is not supported", soc().name.c_str());
  if (old) return Precision::f16;
  return cube_math_type == ALLOW_FP32_DOWN_PRECISION || cube_math_type == USE_HF32 ? Precision::hf32
                                                                                   : Precision::exact;
}

inline Dense<float> narrowed(Dense<float> values, Precision precision) {
  if (precision == Precision::exact) return values;
  Dense<float> narrow(values.count());
  for (std::int64_t i = 0; i < values.count(); ++i)
    narrow[i] = precision == Precision::hf32 ? hf32(values[i]) : rounded(values[i], ACL_FLOAT16);
  return narrow;
}

}  // namespace ascend_double
