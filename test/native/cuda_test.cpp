// The CUDA backend on an emulated device: its kernels, and what it tells the vendor's libraries, take part in
// every test of the op table; here is what the table does not ask.
#include "cuda/emulated_cuda.h"

#include <chrono>
#include <thread>

#include "backend/cuda/libraries.h"
#include "collective_checks.h"
#include "harness.h"
#include "op_readers.h"
#include "step_waits.h"

namespace danceflux::test {
namespace {

const bool known = [] {
  more_test_devices().push_back([] { return TestDevice{"cuda/emulated", open_emulated_cuda()}; });
  return true;
}();

void check_has(const std::string& text, const std::string& part) {
  if (text.find(part) == std::string::npos)
    fail_at(__FILE__, __LINE__, "expected \"", part, "\" in \"", text, "\"");
}

RanksOptions over_nccl(double timeout_seconds = 60) {
  RanksOptions options{"nccl", timeout_seconds};
  options.open_device = [] { return open_emulated_cuda(); };
  options.make_setup = emulated_nccl_setup;
  return options;
}

}  // namespace

TEST("cuda: the op table runs on emulated kernels, and nothing is declined") {
  const auto device = open_emulated_cuda();
  const std::uint64_t before = emulated_launches();
  for (const OpCase& row : all_cases())
    if (row.size == Size::test) forward_values(*device, row);
  CHECK(emulated_launches() - before > op_cases().size());
  CHECK(device->declined().empty());
}

TEST("cuda: strict has one algorithm for all numbers of rows, run-to-run one for each") {
  const auto rows_alone = [](const char* options) {
    const auto device = open_emulated_cuda(options);
    const OpCase row = [] {
      for (const OpCase& each : op_cases())
        if (each.name == "linear f32 [2, 33] to 65") return each;
      fail_at(__FILE__, __LINE__, "expected a row linear f32 [2, 33] to 65");
    }();
    const auto inputs = make_inputs(*device, row);
    // 65 rows of x against one: the fake library recommends another order of sums for each.
    const Tensor many = inputs[1].narrow(0, 0, 65).narrow(1, 0, 33);
    const auto together = ops::to_host(ops::linear(many, many, {}).narrow(0, 3, 1));
    const auto alone = ops::to_host(ops::linear(many.narrow(0, 3, 1), many, {}));
    return together == alone;
  };
  CHECK(rows_alone("{}"));
  CHECK(!rows_alone(R"({"determinism": "off"})"));  // or the check above would see nothing
}

TEST("cuda: no op waits for the device, downloads do") {
  const EmulatedMachine machine;
  const auto device = open_emulated_cuda();
  for (const OpCase& row : all_cases()) {
    if (row.size != Size::test) continue;
    const auto inputs = make_inputs(*device, row);
    const int before = machine.waits();
    const auto results = row.forward(inputs);
    if (machine.waits() != before) fail_at(__FILE__, __LINE__, row.name, ": expected no wait for the device");
  }
}

TEST("cuda: uploads of all sizes arrive, and many small ones wait for nothing") {
  const EmulatedMachine machine;
  const auto device = open_emulated_cuda();
  const auto numbers = [](std::size_t count, float first) {
    std::vector<float> values(count);
    for (float& value : values) value = first++;
    return values;
  };
  std::vector<Tensor> small;
  const int before = machine.waits();
  for (int turn = 0; turn < 1000; ++turn)
    small.push_back(ops::from_host(*device, {1000}, numbers(1000, static_cast<float>(turn))));
  CHECK_EQ(machine.waits(), before);
  // Pieces end inside of this one, and it ends inside of a piece.
  const auto large = numbers((20 << 20) / 4 + 1, 7);
  const Tensor whole = ops::from_host(*device, {static_cast<std::int64_t>(large.size())}, large);
  const Tensor last = ops::from_host(*device, {3}, numbers(3, 5));
  CHECK(ops::to_host(whole) == large);
  CHECK(ops::to_host(last) == numbers(3, 5));
  for (int turn = 0; turn < 1000; turn += 333)
    CHECK(ops::to_host(small[static_cast<std::size_t>(turn)]) == numbers(1000, static_cast<float>(turn)));
  const Tensor after = ops::from_host(*device, {5}, numbers(5, 1));  // a download used the piece since
  CHECK(ops::to_host(after) == numbers(5, 1));
}

TEST("cuda: neither a step of a rollout nor one of an update waits for the device") {
  const EmulatedMachine machine;
  const auto device = open_emulated_cuda();
  check_steps_wait_for_nothing(*device, [&] { return static_cast<std::uint64_t>(machine.waits()); });
}

TEST("cuda: options") {
  open_emulated_cuda(
      R"({"determinism": "off", "tf32": true, "nccl": {"nvls": false}, "hccl": {"bufferSizeMiB": 9}})");
  CHECK_THROWS("ERR_OPTION", open_emulated_cuda(R"({"determinism": "sometimes"})"));
  CHECK_THROWS("ERR_OPTION", open_emulated_cuda(R"({"attention": "cudnn"})"));
  CHECK_THROWS("ERR_OPTION", open_emulated_cuda(R"({"threads": 2})"));
  CHECK_THROWS("ERR_OPTION", open_emulated_cuda(R"({"ncclx": 2})"));
}

TEST("cuda: out of memory tells what was asked, used, held and free") {
  EmulatedMachine machine;
  const auto device = open_emulated_cuda();
  const Tensor small = device->empty({1 << 20});
  machine.memory(std::size_t{64} << 20);
  const std::string words = message_of([&] { device->empty({64 << 20}); });
  check_has(words, "expected 256.00 MiB on cuda:0, got none");
  check_has(words, "4.00 MiB in use");
  check_has(words, "of 64.00 MiB free on the device");
  device->empty({1 << 10});  // and the device goes on
}

TEST("cuda: what nobody has taken of the device's memory is told, to any thread") {
  EmulatedMachine machine;
  const auto device = open_emulated_cuda();
  const std::size_t before = device->free_memory().value();
  const Tensor x = device->empty({1 << 20});
  std::size_t after = 0;
  std::thread([&] { after = device->free_memory().value(); }).join();
  CHECK_EQ(before - after, std::size_t{4} << 20);
  machine.sticky_error(700);
  CHECK(!device->free_memory());
}

TEST("cuda: a lost device fails jobs, with the op, and nothing else") {
  EmulatedMachine machine;
  {
    const auto device = open_emulated_cuda();
    const Tensor x = device->empty({100});
    machine.sticky_error(700);
    CHECK_THROWS("ERR_DEVICE_LOST", device->fill(x, 1));
    CHECK_THROWS("ERR_DEVICE_LOST", device->synchronize());
    check_has(message_of([&] { device->synchronize(); }), "cudaErrorIllegalAddress");
  }
  machine.sticky_error(0);
  open_emulated_cuda()->synchronize();
}

TEST("cuda: the probe tells what is there and what is not") {
  EmulatedMachine machine;
  PluginProbe found = probe_emulated_cuda();
  CHECK(found.state == ProbeState::ready);
  CHECK_EQ(found.devices, 1);
  check_has(found.message, "emulated (sm_90, 4.00 GiB), driver for CUDA 13.0");
  machine.devices(8);
  check_has(probe_emulated_cuda().message, "8 x emulated");
  machine.devices(0);
  found = probe_emulated_cuda();
  CHECK(found.state == ProbeState::no_device);
  check_has(found.hint, "CUDA_VISIBLE_DEVICES");
  machine.driver(11080);
  found = probe_emulated_cuda();
  CHECK(found.state == ProbeState::driver_too_old);
  check_has(found.message, "expected a driver for CUDA 13.0 or newer, got 11.8");
  machine.driver(0);
  found = probe_emulated_cuda();
  CHECK(found.state == ProbeState::no_device);
  check_has(found.message, "no NVIDIA driver");
}

// ---- collectives
// ----------------------------------------------------------------------------------------------------

TEST("cuda: collectives give exact integers on 1 to 4 ranks") {
  for (int size = 1; size <= 4; ++size)
    on_threads(size, over_nccl(), [](const Rank& rank) { check_everything(rank, {0, 1, 57, 1009}); });
}

TEST("cuda: ordered sums are made in the pairwise tree") {
  for (int size = 2; size <= 7; ++size) {
    on_threads(size, over_nccl(), [](const Rank& rank) {
      for (const DType dtype : kDTypes)
        for (const std::int64_t count : {1, 5, 301}) check_tree(rank, dtype, count);
    });
  }
}

TEST("cuda: a rank that does not come is a failure at the deadline, and stays one") {
  on_threads(2, over_nccl(0.3), [](const Rank& rank) {
    const Tensor x = rank.device.empty({100});
    rank.device.fill(x, 1);
    rank.wait(rank.communicator.all_reduce(x, {}));
    if (rank.rank == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(600));
      return;
    }
    rank.communicator.progress.heard(1, {1});
    check_has(message_of([&] { rank.wait(rank.communicator.all_reduce(x, {})); }),
              "all_reduce 2: rank 0 waited 0.3 s for the other ranks: rank 1 did not come, last heard of at "
              "call 1");
    check_has(message_of([&] { rank.communicator.barrier(); }), "all_reduce 2");
  });
}

TEST("cuda: an abort from another thread ends a wait") {
  on_threads(2, over_nccl(20), [](const Rank& rank) {
    if (rank.rank == 1) return std::this_thread::sleep_for(std::chrono::milliseconds(300));
    std::thread other([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      rank.communicator.abort("enough");
    });
    const std::string words = message_of([&] { rank.wait(rank.communicator.barrier()); });
    other.join();
    check_has(words, "enough");
  });
}

TEST("cuda: options of collectives") {
  const auto device = open_emulated_cuda();
  const auto setup = [&](const char* options) { return emulated_nccl_setup(device, {0, 1, 10, options}); };
  setup(R"({"minCtas": 4, "maxCtas": 4})");
  CHECK_THROWS("ERR_OPTION", setup(R"({"minCtas": 8, "maxCtas": 4})"));
  CHECK_THROWS("ERR_OPTION", setup(R"({"maxCtas": 65})"));
  CHECK_THROWS("ERR_OPTION", setup(R"({"ctas": 1})"));
  const std::string truncated = setup("{}")->offer().substr(0, 50);
  CHECK_THROWS("ERR_COMMUNICATION", setup("{}")->connect(std::span(&truncated, 1)));
}

}  // namespace danceflux::test
