// Tensors as operands of a product.
#pragma once
#include "backend/cpu/panel.h"
#include "core/dtype.h"
#include "core/error.h"

namespace danceflux::cpu {

/// Throws ERR_DTYPE in the name of `op`.
inline Store store_of(const char* op, DType dtype) {
  switch (dtype) {
    case DType::f32:
      return Store::f32;
    case DType::bf16:
      return Store::bf16;
    case DType::f16:
      return Store::f16;
    default:
      fail("ERR_DTYPE", op, ": expected f32, bf16 or f16, got ", name_of(dtype));
  }
}

}  // namespace danceflux::cpu
