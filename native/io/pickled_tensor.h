// Tensors as views of storages that a file claims to hold.
#pragma once
#include <string>
#include <string_view>

#include "io/format_dtype.h"
#include "io/tensor_file.h"

namespace danceflux::io {

struct PickledStorage {
  std::string_view data;
  const FormatDType* format = nullptr;
};

/// What is wrong with the view, as what was expected and what came instead; empty when every element lies in
/// the storage. Offset and strides count elements; strides may be 0 (expanded tensors) but not negative,
/// which PyTorch does not have. An expanded tensor may exceed its storage by 1 MiB: a small file must not
/// claim gigabytes.
std::string trouble_with_view(const PickledStorage& storage, std::int64_t offset, const Shape& shape,
                              const Shape& strides);

/// The tensor, without a name. Only for views without trouble.
FileTensor view_storage(const PickledStorage& storage, std::int64_t offset, const Shape& shape,
                        const Shape& strides);

}  // namespace danceflux::io
