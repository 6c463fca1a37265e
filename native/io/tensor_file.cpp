#include "io/tensor_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>

#include "core/error.h"
#include "core/json.h"
#include "io/mapped_file.h"
#include "io/safetensors.h"
#include "io/torch_zip.h"

namespace danceflux::io {
namespace {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

// Only names that a person could have meant: names from hostile files may be long, and the search is
// quadratic.
std::string nearest_name(const std::vector<FileTensor>& tensors, std::string_view wanted) {
  constexpr std::size_t kLongest = 256, kMost = 4096;
  std::string best;
  std::size_t best_distance = wanted.size() / 2 + 1, seen = 0;
  for (const FileTensor& tensor : tensors) {
    if (tensor.name.size() > kLongest || ++seen > kMost) continue;
    const std::size_t distance = edit_distance(tensor.name, wanted);
    if (distance < best_distance) best_distance = distance, best = tensor.name;
  }
  return best;
}

// Row-major copy of a view. The innermost loop is alone, so that a transposed matrix of a few million
// elements is no wait.
void copy_strided(const FileTensor& view, std::byte* out) {
  const std::size_t size = size_of(view.dtype);
  const int last = view.shape.rank() - 1;
  const std::int64_t inner = last >= 0 ? view.shape[last] : 1;
  const std::int64_t step = (last >= 0 ? view.strides[last] : 0) * static_cast<std::int64_t>(size);
  std::array<std::int64_t, kMaxRank> index{};
  for (std::int64_t left = view.shape.numel(); left > 0; left -= inner) {
    std::int64_t offset = 0;
    for (int axis = 0; axis < last; ++axis)
      offset += index[static_cast<std::size_t>(axis)] * view.strides[axis];
    const std::byte* from = view.data + offset * static_cast<std::int64_t>(size);
    for (std::int64_t i = 0; i < inner; ++i, out += size) std::memcpy(out, from + i * step, size);
    for (int axis = last - 1; axis >= 0; --axis) {
      std::int64_t& place = index[static_cast<std::size_t>(axis)];
      if (++place < view.shape[axis]) break;
      place = 0;
    }
  }
}

FileTensor transposed_view(const FileTensor& tensor) {
  require(tensor.shape.rank() == 2, "ERR_WEIGHTS", shown(tensor.name),
          ": expected a matrix to transpose, got ", tensor.shape);
  FileTensor view = tensor;
  view.shape = {tensor.shape[1], tensor.shape[0]};
  view.strides = {tensor.strides[1], tensor.strides[0]};
  return view;
}

}  // namespace

const FileTensor& TensorFile::find(const std::string& name) const {
  const auto& all = tensors();
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const FileTensor& tensor) { return tensor.name == name; });
  if (found != all.end()) return *found;
  const std::string near = nearest_name(all, name);
  throw Error("ERR_WEIGHTS",
              path() + ": expected a tensor named " + json_quote(name) + ", got none among " +
                  std::to_string(all.size()),
              near.empty() ? "" : "the nearest name there is " + json_quote(near));
}

void TensorFile::release(const FileTensor& tensor) const {
  // A view of a strided tensor may reach further: what it leaves behind goes when the file is closed.
  file_.release(tensor.data, static_cast<std::size_t>(tensor.shape.numel()) * size_of(tensor.dtype));
}

std::shared_ptr<TensorFile> open_tensor_file(const std::string& path) {
  const MappedFile file(path);
  const bool zip = file.size() >= 4 && std::memcmp(file.data(), "PK\x03\x04", 4) == 0;
  if (zip || is_legacy_pickle(file)) return open_torch_zip(path);
  constexpr std::string_view kPointer = "version https://git-lfs";
  if (file.size() >= kPointer.size() && file.text(0, kPointer.size()) == kPointer) {
    throw Error("ERR_FILE", path + ": expected weights, got a Git LFS pointer to them",
                "fetch them: git lfs pull");
  }
  return open_safetensors(path);
}

void read_rows(const FileTensor& source, std::int64_t row, std::int64_t rows, bool transposed, DType dtype,
               void* out) {
  if (!source.readable) {
    fail("ERR_DTYPE", shown(source.name), ": expected f32, bf16, f16, f64, i32, i64 or u8, got ",
         source.dtype_name, "; convert the file first");
  }
  FileTensor picked = source;
  if (rows >= 0) {
    require(source.shape.rank() > 0 && row >= 0 && row <= source.shape[0] - rows, "ERR_WEIGHTS",
            shown(source.name), ": expected rows ", row, " + ", rows, " within shape ", source.shape);
    picked.shape[0] = rows;
    picked.data += row * source.strides[0] * static_cast<std::int64_t>(size_of(source.dtype));
  }
  if (transposed) picked = transposed_view(picked);
  const auto count = static_cast<std::size_t>(picked.shape.numel());
  if (count == 0) return;
  if (picked.strides == contiguous_strides(picked.shape))
    return convert_elements(out, dtype, picked.data, picked.dtype, count);
  std::vector<std::byte> dense(count * size_of(picked.dtype));
  copy_strided(picked, dense.data());
  convert_elements(out, dtype, dense.data(), picked.dtype, count);
}

}  // namespace danceflux::io
