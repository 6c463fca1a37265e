// Three ways to a rope table in which each angle stands twice, [L, K/2] -> [L, K], on an Ascend device: repeat along
// the last axis, which CANN before 8.3 is very slow at; repeat along the first axis of the transposed table; make it
// on the host and upload it, which is what the engine does. All three are compared before anything is timed.
//
//   ascend_rope_table_bench [repeats] [tokens] [angles]
//
// Prints JSON lines: name, milliseconds, checked. Exit status 1 where there is no device, or results differ.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "backend/ascend/launcher.h"

namespace {
using namespace danceflux;
using namespace danceflux::ascend;

/// aclnnRepeatInterleaveIntWithDim is none of the engine's operators.
using Repeat = Operator<void(In x, i64 repeats, i64 axis, i64 output_size, Out out)>;

/// Memory of the device for tensors of this program.
class BenchDevice final : public Device, public std::enable_shared_from_this<BenchDevice> {
 public:
  explicit BenchDevice(std::shared_ptr<Npu> npu)
      : npu_(std::move(npu)),
        pool_(
            [this](std::size_t bytes) {
              void* address = nullptr;
              npu_->check(npu_->acl().aclrtMalloc(&address, bytes + 32, kMallocHugeFirst), "aclrtMalloc");
              return address;
            },
            [this](void* address, std::size_t) { npu_->acl().aclrtFree(address); }),
        launch(npu_, pool_, {}) {}

  Tensor empty(const Shape& shape) {
    const auto bytes = static_cast<std::size_t>(shape.numel()) * sizeof(float);
    return Tensor(std::make_shared<Storage>(shared_from_this(), pool_.allocate(bytes), bytes), DType::f32, shape);
  }
  void release(void* address, std::size_t bytes) noexcept override { pool_.release(address, bytes); }
  std::vector<float> download(const Tensor& x) {
    std::vector<float> values(static_cast<std::size_t>(x.numel()));
    npu_->synchronize("download");
    npu_->check(npu_->acl().aclrtMemcpy(values.data(), x.bytes(), x.address(), x.bytes(), kDeviceToHost), "aclrtMemcpy");
    return values;
  }
  Npu& npu() { return *npu_; }

 private:
  const std::shared_ptr<Npu> npu_;
  Pool pool_;

 public:
  Launcher launch;
};

Repeat find_repeat(const Cann& cann) {
  Repeat repeat{{"aclnnRepeatInterleaveIntWithDim"}};
  for (const std::string& library : cann.libraries) find_operator(library, repeat);
  return repeat;
}

int run(int repeats, std::int64_t tokens, std::int64_t angles) {
  const auto device = std::make_shared<BenchDevice>(Npu::open(0, {}));
  const Repeat repeat = find_repeat(device->npu().cann());
  if (!repeat.found()) throw Error("ERR_DEVICE", "this CANN has no aclnnRepeatInterleaveIntWithDim");
  const Operators& ops = device->npu().cann().operators;
  std::vector<float> host(static_cast<std::size_t>(tokens * angles)), wanted(2 * host.size());
  const auto build = [&] {
    for (std::size_t i = 0; i < host.size(); ++i) wanted[2 * i] = wanted[2 * i + 1] = host[i];
  };
  for (std::size_t i = 0; i < host.size(); ++i) host[i] = std::cos(static_cast<float>(i % 6283) * 1e-3f);
  build();

  const Tensor table = device->empty({tokens, angles}), out = device->empty({tokens, 2 * angles});
  const Tensor turned = device->empty({angles, tokens}), twice = device->empty({2 * angles, tokens});
  device->npu().upload(table.address(), host.data(), table.bytes());
  const auto last_axis = [&] { device->launch("repeat", repeat, table, 2, 1, 2 * angles, out); };
  const auto first_axis = [&] {
    device->launch("turn", ops.aclnnInplaceCopy, turned, table.transpose(0, 1));
    device->launch("repeat", repeat, turned, 2, 0, 2 * angles, twice);
    device->launch("turn", ops.aclnnInplaceCopy, out, twice.transpose(0, 1));
  };
  const auto upload = [&] {
    build();
    device->npu().upload(out.address(), wanted.data(), out.bytes());
  };

  bool good = true;
  const auto measure = [&](const char* name, const auto& way) {
    const std::vector<float> dirt(wanted.size(), -2);
    device->npu().upload(out.address(), dirt.data(), out.bytes());
    way();
    const bool checked = device->download(out) == wanted;
    good = good && checked;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < repeats; ++i) way();
    device->npu().synchronize(name);
    const std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - start;
    std::printf("{\"name\":\"%s\",\"milliseconds\":%.6f,\"checked\":%s}\n", name, taken.count() / repeats,
                checked ? "true" : "false");
  };
  measure("repeat along the last axis", last_axis);
  measure("repeat along the first, transposed", first_axis);
  measure("made on the host and uploaded", upload);
  return good ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, long otherwise) { return argc > i ? std::atol(argv[i]) : otherwise; };
  try {
    return run(static_cast<int>(std::max(argument(1, 20), 1L)), argument(2, 4608), argument(3, 64));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
