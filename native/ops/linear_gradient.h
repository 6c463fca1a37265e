// The gradient of x @ weight^T + bias, which linear and linear_activation share.
#pragma once
#include "autograd/tape.h"

namespace danceflux::ops {

/// Inputs 0, 1, 2 of the node are x, weight, bias. `rows` is x as [rows, Din], `dy` [..., Dout].
void add_linear_gradient(const Tensor& dy, const Tensor& rows, const Tensor& weight, const Shape& x_shape,
                         Gradients& gradients);
/// x [..., Din] as [rows, Din], without a copy where the strides allow.
Tensor as_rows(const Tensor& x);
/// Checks x [..., Din], weight [Dout, Din], bias [Dout]; returns the shape of the result, [..., Dout].
Shape check_linear(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias);

}  // namespace danceflux::ops
