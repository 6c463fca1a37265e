// Tensors as operands of a product.
#pragma once
#include "backend/cpu/panel.h"
#include "core/dtype.h"
#include "core/error.h"

namespace danceflux::cpu {

/// Throws ERR_DTYPE in the name of `op`.
inline Store store_of(const char* op, DType dtype) {
  switch (dtype) {
    case DType::f32: return Store::f32;
    case DType::bf16: return Store::bf16;
    case DType::f16: return Store::f16;
    default: fail("ERR_DTYPE", op, ": expected f32, bf16 or f16, got ", name_of(dtype));
  }
}

/// Element `at` of stored weights.
inline float widened(const void* data, Store store, std::int64_t at) {
  if (store == Store::f32) return static_cast<const float*>(data)[at];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(data)[at];
  return store == Store::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

}  // namespace danceflux::cpu
