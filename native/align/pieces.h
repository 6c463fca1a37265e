// Tensors on their way to the host, a piece at a time.
#pragma once
#include <cstddef>
#include <functional>

#include "core/tensor.h"

namespace danceflux::align {

/// Calls `visit` with the elements of `tensor` in row-major order, piece by piece.
void for_each_piece(const Tensor& tensor,
                    const std::function<void(const std::byte* data, std::size_t elements)>& visit);

}  // namespace danceflux::align
