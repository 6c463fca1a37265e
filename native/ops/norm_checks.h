// Checks that the norms share with the fused ops built on them.
#pragma once
#include "core/tensor.h"

namespace danceflux::ops {

void check_group_norm(const char* op, const Tensor& x, int groups, const Tensor& weight, const Tensor& bias);
void check_rope(const char* op, const Tensor& x, const Tensor& cos, const Tensor& sin);

}  // namespace danceflux::ops
