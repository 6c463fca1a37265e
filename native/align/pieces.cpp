#include "align/pieces.h"

#include <algorithm>
#include <vector>

#include "backend/backend.h"

namespace danceflux::align {
namespace {

constexpr std::int64_t kPiece = 1 << 20;  // elements on the host at once

}  // namespace

void for_each_piece(const Tensor& tensor,
                    const std::function<void(const std::byte* data, std::size_t elements)>& visit) {
  if (tensor.numel() == 0) return;
  const bool flat = tensor.is_contiguous();
  if (tensor.numel() > kPiece && flat && tensor.rank() != 1)
    return for_each_piece(tensor.view({tensor.numel()}), visit);
  if (tensor.numel() > kPiece) {
    int axis = 0;
    while (tensor.dim(axis) == 1) ++axis;
    const std::int64_t row = tensor.numel() / tensor.dim(axis),
                       rows = std::max<std::int64_t>(1, kPiece / row);
    for (std::int64_t start = 0; start < tensor.dim(axis); start += rows)
      for_each_piece(tensor.narrow(axis, start, std::min(rows, tensor.dim(axis) - start)), visit);
    return;
  }
  Backend& device = backend_of(tensor);
  Tensor packed = tensor;
  if (!flat) {
    packed = device.empty(tensor.shape(), tensor.dtype());
    device.copy(packed, tensor);
  }
  std::vector<std::byte> host(packed.bytes());
  device.download(host.data(), packed);
  visit(host.data(), static_cast<std::size_t>(packed.numel()));
}

}  // namespace danceflux::align
