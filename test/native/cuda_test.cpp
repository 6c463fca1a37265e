// The CUDA backend on an emulated device: its kernels, and what it tells the vendor's libraries, take part in every
// test of the op table.
#include "cuda/emulated_cuda.h"
#include "cuda/emulated_launches.h"
#include "harness.h"
#include "op_readers.h"

namespace danceflux::test {
namespace {

const bool known = [] {
  more_test_devices().push_back([] { return TestDevice{"cuda/emulated", open_emulated_cuda()}; });
  return true;
}();

}  // namespace

TEST("cuda: the op table runs on emulated kernels") {
  const auto device = open_emulated_cuda();
  const std::uint64_t before = emulated::launches();
  for (const OpCase& row : op_cases())
    if (row.size == Size::test) forward_values(*device, row);
  CHECK(emulated::launches() - before > op_cases().size());
  CHECK(device->declined().empty());
}

}  // namespace danceflux::test
