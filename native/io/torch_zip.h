// PyTorch checkpoints (`.pt`): a zip of stored entries, a pickle that only an allow-list may run, raw
// storages.
#pragma once
#include <memory>
#include <string>

#include "io/mapped_file.h"
#include "io/tensor_file.h"

namespace danceflux::io {

/// Tensors get the keys on their way as dotted names ("state_dict.visual.proj"): strings, whole numbers,
/// positions in lists and tuples; below other keys nothing is looked for, and values that are no tensors are
/// passed over. Strides and offsets are kept, so tensors may share storage and need not be contiguous. Throws
/// ERR_PICKLE for anything outside the allow-list, naming it, and for whatever does not hold together.
std::shared_ptr<TensorFile> open_torch_zip(const std::string& path);

/// A pickle without a zip around it (PyTorch before 1.6, or `_use_new_zipfile_serialization=False`), which
/// open_torch_zip refuses with a hint how to convert it.
bool is_legacy_pickle(const MappedFile& file);

}  // namespace danceflux::io
