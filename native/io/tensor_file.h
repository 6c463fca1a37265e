// Files that hold named tensors. Hostile until parsed: every length, offset and name is checked before
// anything is read.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/shape.h"
#include "io/mapped_file.h"

namespace danceflux::io {

/// One tensor of a file.
struct FileTensor {
  std::string name;
  std::string dtype_name;  // as the file spells it
  Shape shape;
  Shape strides;                    // in elements; row-major in safetensors
  const std::byte* data = nullptr;  // first element, in the mapped file; may be unaligned
  bool readable =
      false;  // false: a dtype that this engine does not read (F8_E4M3, ...), told when it is asked for
  DType dtype = DType::f32;
};

/// A mapped file. Keeps the mapping alive; the pointers in it are valid as long as it is.
class TensorFile {
 public:
  virtual ~TensorFile() = default;
  virtual const std::vector<FileTensor>& tensors() const = 0;
  virtual const std::map<std::string, std::string>& metadata() const = 0;
  /// Throws ERR_WEIGHTS naming the tensor, the file and the nearest name that is there.
  const FileTensor& find(const std::string& name) const;
  /// Call it when `tensor`, one of this file's, was read for good: its pages leave the process's memory, so
  /// that a model's file does not stay beside the model until all of it is loaded.
  void release(const FileTensor& tensor) const;
  const std::string& path() const { return path_; }

 protected:
  explicit TensorFile(const std::string& path) : file_(path), path_(path) {}
  const MappedFile file_;

 private:
  std::string path_;
};

/// Reads by content, not by name: safetensors or a torch zip (`.pt`). Throws ERR_FILE (cannot be opened),
/// ERR_SAFETENSORS or ERR_PICKLE with what is wrong and where.
std::shared_ptr<TensorFile> open_tensor_file(const std::string& path);

/// Rows `row` .. `row + rows - 1` of a tensor (the whole when rows < 0) as contiguous elements of `dtype`,
/// converted on the host. `transposed` reads a matrix across. Appends nothing; `out` has rows * row_elements
/// elements.
void read_rows(const FileTensor& tensor, std::int64_t row, std::int64_t rows, bool transposed, DType dtype,
               void* out);

}  // namespace danceflux::io
