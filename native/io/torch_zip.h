// PyTorch checkpoints (`.pt`): a zip of stored entries, a pickle that only an allow-list may run, raw storages.
#pragma once
#include <memory>
#include <string>

#include "io/mapped_file.h"
#include "io/tensor_file.h"

namespace danceflux::io {

/// Tensors of nested dicts get dotted names ("state_dict.visual.proj"). Throws ERR_PICKLE for anything outside the allow-list, naming it,
/// and for whatever does not hold together.
std::shared_ptr<TensorFile> open_torch_zip(const std::string& path);

/// A pickle without a zip around it (PyTorch before 1.6, or `_use_new_zipfile_serialization=False`).
bool is_legacy_pickle(const MappedFile& file);

}  // namespace danceflux::io
