#include "backend/host_reduce.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/isa_select.h"
#include "backend/cpu/row_kernels.h"
#include "core/error.h"

namespace danceflux {
namespace {

using cpu::RowKernels;

constexpr std::int64_t kBlock = 1024;  // elements: a few blocks of f32 fit in the first cache
constexpr int kDepth = 14;             // of the stack: a tree over 4096 leaves needs 13

/// A reference, since threads may still reduce when the process ends and destroys its statics.
const RowKernels& best_rows() {
  static const RowKernels& rows = *cpu::select_isa("").rows;
  return rows;
}

/// One block of all parts. Sums that wait for their neighbour lie on a stack; two of one size join at once,
/// what is left at the end joins from the right.
class BlockTree {
 public:
  BlockTree(CollectiveReduce op, DType dtype)
      : dtype_(dtype),
        rows_(best_rows()),
        join_(rows_.elementwise->binary[static_cast<int>(
            op == CollectiveReduce::sum ? BinaryOp::add : BinaryOp::max)][cpu::kBothRows]) {}

  void run(void* out, std::span<const void* const> parts, std::int64_t offset, std::int64_t count) {
    const std::size_t start = static_cast<std::size_t>(offset) * size_of(dtype_);
    depth_ = 0;
    for (std::size_t part = 0; part < parts.size(); ++part) {
      push(static_cast<const char*>(parts[part]) + start, count);
      const bool last = part + 1 == parts.size();
      while (depth_ >= 2 && (last || leaves_[depth_ - 1] == leaves_[depth_ - 2])) {
        const bool whole = last && depth_ == 2;
        join(whole && dtype_ == DType::f32 ? reinterpret_cast<float*>(static_cast<char*>(out) + start)
                                           : scratch_[depth_ - 2],
             count);
      }
    }
    char* const to = static_cast<char*>(out) + start;
    if (sums_[0] == reinterpret_cast<float*>(to)) return;
    convert(to, dtype_, sums_[0], DType::f32, count);
  }

 private:
  void push(const char* part, std::int64_t count) {
    if (dtype_ == DType::f32) {
      sums_[depth_] = reinterpret_cast<const float*>(part);
    } else {
      convert(scratch_[depth_], DType::f32, part, dtype_, count);
      sums_[depth_] = scratch_[depth_];
    }
    leaves_[depth_++] = 1;
  }
  void join(float* out, std::int64_t count) {
    join_(out, sums_[depth_ - 2], sums_[depth_ - 1], count, 1.0f);
    sums_[depth_ - 2] = out;
    leaves_[depth_ - 2] += leaves_[depth_ - 1];
    --depth_;
  }
  void convert(void* out, DType to, const void* x, DType from, std::int64_t count) const {
    rows_.convert->convert[static_cast<int>(to)][static_cast<int>(from)](out, x, count);
  }

  DType dtype_;
  const RowKernels& rows_;
  cpu::ElementwiseRows::Binary join_;
  const float* sums_[kDepth];
  int leaves_[kDepth];
  int depth_ = 0;
  alignas(64) float scratch_[kDepth][kBlock];
};

static_assert(static_cast<int>(DType::f32) == 0 && static_cast<int>(DType::bf16) == 1 &&
                  static_cast<int>(DType::f16) == 2,
              "the order of the conversion table");

}  // namespace

void reduce_parts(CollectiveReduce op, DType dtype, void* out, std::span<const void* const> parts,
                  std::int64_t count) {
  require(!parts.empty() && parts.size() <= 4096 && size_of(dtype) <= 4, "ERR_INTERNAL",
          "reduce_parts: expected 1 to 4096 parts of f32, bf16 or f16");
  BlockTree tree(op, dtype);
  for (std::int64_t offset = 0; offset < count; offset += kBlock)
    tree.run(out, parts, offset, std::min(kBlock, count - offset));
}

}  // namespace danceflux
