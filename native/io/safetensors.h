// The safetensors format: 8 bytes of header length, a JSON header, one buffer.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "io/tensor_file.h"

namespace danceflux::io {

std::shared_ptr<TensorFile> open_safetensors(const std::string& path);

/// A tensor to be written: `fill` puts its contiguous elements of `dtype` into the buffer when its turn
/// comes, so that one tensor at a time is on the host.
struct TensorToWrite {
  std::string name;
  DType dtype;
  Shape shape;
  std::function<void(std::byte* to)> fill;
};

/// Atomic: writes `path`.tmp-<pid>, syncs it, renames it, syncs the folder. Names sorted, data aligned to 8
/// bytes. Throws ERR_FILE (the temporary file is removed) when the disk is full or the folder cannot be
/// written; `path` is then untouched.
void write_safetensors(const std::string& path, std::vector<TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace danceflux::io
