// Host numbers into row ranges of stored tensors, in pieces that stay in the cache.
#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "nn/module.h"
#include "ops/ops.h"

namespace danceflux::nn {
namespace {

constexpr std::size_t kPiece = std::size_t{1} << 18;  // numbers converted at a time

/// Host numbers that may lie unaligned, as in a mapped file.
struct HostMatrix {
  DType dtype;
  const char* data;
  const char* at(std::size_t i) const { return data + i * size_of(dtype); }
};

/// Are all exponents short of the one that means infinity or NaN? No early exit: the loop is vectorised.
template <class Bits>
bool all_finite(const char* numbers, std::size_t count, Bits exponent) {
  bool finite = true;
  for (std::size_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, numbers + i * sizeof bits, sizeof bits);
    finite &= (bits & exponent) != exponent;
  }
  return finite;
}

bool all_finite(DType dtype, const char* numbers, std::size_t count) {
  if (dtype == DType::f32) return all_finite<std::uint32_t>(numbers, count, 0x7f800000u);
  return all_finite<std::uint16_t>(numbers, count, dtype == DType::bf16 ? 0x7f80u : 0x7c00u);
}

void check_finite(const std::string& name, DType stored, const std::vector<char>& piece, std::size_t count,
                  std::size_t first) {
  if (all_finite(stored, piece.data(), count)) return;
  std::size_t bad = 0;
  while (all_finite(stored, piece.data() + bad * size_of(stored), 1)) ++bad;
  fail("ERR_NOT_FINITE", "load: ", name, ": expected finite numbers that fit ", name_of(stored),
       ", got another at element ", first + bad);
}

/// Rows `row` .. of the transpose of `from` [columns, all_rows], converted, row-major.
void convert_transposed(std::vector<char>& to, DType to_type, const HostMatrix& from, std::size_t all_rows,
                        std::size_t columns, std::size_t row, std::size_t rows) {
  const std::size_t size = size_of(to_type);
  std::vector<char> line(rows * size);
  for (std::size_t column = 0; column < columns; ++column) {
    convert_elements(line.data(), to_type, from.at(column * all_rows + row), from.dtype, rows);
    for (std::size_t r = 0; r < rows; ++r) {
      std::memcpy(to.data() + (r * columns + column) * size, line.data() + r * size, size);
    }
  }
}

void load_plain(const std::string& name, const Tensor& target, const HostMatrix& from) {
  const auto count = static_cast<std::size_t>(target.numel());
  const Tensor flat = target.view({-1});
  std::vector<char> piece(std::min(count, kPiece) * size_of(target.dtype()));
  for (std::size_t first = 0; first < count; first += kPiece) {
    const std::size_t n = std::min(kPiece, count - first);
    convert_elements(piece.data(), target.dtype(), from.at(first), from.dtype, n);
    check_finite(name, target.dtype(), piece, n, first);
    backend_of(flat).upload(flat.narrow(0, static_cast<std::int64_t>(first), static_cast<std::int64_t>(n)),
                            piece.data());
  }
}

void load_transposed(const std::string& name, const Tensor& target, const HostMatrix& from) {
  require(target.rank() == 2, "ERR_SHAPE", "load: ", name, ": expected a matrix for a transposed load, got ",
          target.shape());
  const auto all_rows = static_cast<std::size_t>(target.dim(0));
  const auto columns = static_cast<std::size_t>(target.dim(1));
  const std::size_t step = std::max<std::size_t>(1, kPiece / std::max<std::size_t>(1, columns));
  std::vector<char> piece(std::min(step, all_rows) * columns * size_of(target.dtype()));
  for (std::size_t row = 0; row < all_rows; row += step) {
    const std::size_t rows = std::min(step, all_rows - row);
    convert_transposed(piece, target.dtype(), from, all_rows, columns, row, rows);
    check_finite(name, target.dtype(), piece, rows * columns, row * columns);
    backend_of(target).upload(
        target.narrow(0, static_cast<std::int64_t>(row), static_cast<std::int64_t>(rows)), piece.data());
  }
}

}  // namespace

void Module::load(const std::string& name, DType dtype, const void* data, std::size_t count,
                  bool transposed) {
  device();  // says so if there is none
  require(is_float(dtype), "ERR_DTYPE", "load: ", name, ": expected a float dtype, got ", name_of(dtype));
  bool found = false;
  for_each_part({}, [&](const std::string& published, Stored& stored, Part& part) {
    if (published != name) return;
    found = true;
    const Tensor target = stored.parameter->value.narrow(0, part.row, part.rows);
    require(static_cast<std::size_t>(target.numel()) == count, "ERR_SHAPE", "load: ", name, ": expected ",
            target.numel(), " numbers of shape ", target.shape(), ", got ", count);
    const HostMatrix from{dtype, static_cast<const char*>(data)};
    transposed ? load_transposed(name, target, from) : load_plain(name, target, from);
    part.loaded = true;
  });
  require(found, "ERR_NAME", "load: expected the name of a parameter of this model, got \"", name, "\"");
}

}  // namespace danceflux::nn
