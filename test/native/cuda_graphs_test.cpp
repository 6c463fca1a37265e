// Work that comes again, as CUDA graphs on the emulated device: the same numbers, from memory of its own, for
// as long as what it was recorded from holds.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/cancel.h"
#include "cuda/emulated_cuda.h"
#include "harness.h"
#include "models/flux.h"
#include "nn/lora.h"
#include "ops/ops.h"

namespace danceflux::test {
namespace {

constexpr const char* kGraphs = R"({"graphs": true})";

std::vector<float> wave(std::int64_t count, float first) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(first + 0.37f * static_cast<float>(i));
  return values;
}

Tensor wave_on(Backend& device, const Shape& shape, float first) {
  return ops::from_host(device, shape, wave(shape.numel(), first));
}

/// Takes all that the device has ever given back, and writes nonsense there.
void spoil_free_memory(Backend& device) {
  std::vector<Tensor> taken;
  for (const std::int64_t count : {64, 256, 1024, 4096, 16384})
    for (int turn = 0; turn < 16; ++turn) {
      taken.push_back(device.empty({count}));
      device.fill(taken.back(), NAN);
    }
}

/// Something with intermediate tensors, a product and weights that are not among its inputs.
struct Small {
  explicit Small(Backend& device) : weight(wave_on(device, {24, 24}, 5)) {}
  Tensor weight;
  std::vector<Tensor> operator()(std::span<const Tensor> x) const {
    const Tensor h = ops::silu(ops::linear(x[0], weight, {}));
    return {ops::add(h, x[1]), ops::transpose(h, 0, 1)};
  }
};

/// Both outputs.
std::vector<float> numbers_of(const std::vector<Tensor>& outputs) {
  std::vector<float> all;
  for (const Tensor& each : outputs) {
    const auto values = ops::to_host(each);
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

models::FluxConfig small_flux() {
  models::FluxConfig config;
  config.in_channels = 8;
  config.num_layers = config.num_single_layers = 1;
  config.attention_head_dim = 16;
  config.num_attention_heads = 2;
  config.joint_attention_dim = 12;
  config.pooled_projection_dim = 10;
  config.guidance_embeds = true;
  config.axes_dims_rope = {4, 6, 6};
  return config;
}

}  // namespace

TEST("cuda graphs: recorded at the second call, replayed with new numbers, in memory of their own") {
  const auto device = open_emulated_cuda(kGraphs);
  const Small work(*device);
  const std::uint64_t before = emulated_graph_launches();
  std::vector<Tensor> first;
  std::vector<float> first_numbers;
  for (int turn = 0; turn < 6; ++turn) {
    const Tensor inputs[] = {wave_on(*device, {5, 24}, static_cast<float>(turn)),
                             ops::transpose(wave_on(*device, {24, 5}, 9), 0, 1)};
    if (turn == 4) ops::copy_(work.weight, wave_on(*device, {24, 24}, 77));  // in place, as the optimizer
    const auto wanted = numbers_of(work(inputs));
    const auto outputs = device->recurring("small", inputs, work);
    CHECK(numbers_of(outputs) == wanted);
    spoil_free_memory(*device);
    if (turn == 2) first = outputs, first_numbers = wanted;
  }
  CHECK_EQ(emulated_graph_launches() - before, 5u);
  CHECK(numbers_of(first) == first_numbers);  // later replays leave it alone
}

TEST("cuda graphs: without the option, or waiting after every op, nothing is recorded") {
  const std::uint64_t before = emulated_graph_launches();
  for (const char* options : {"{}", R"({"graphs": true, "synchronous": true})"}) {
    const auto device = open_emulated_cuda(options);
    const Small work(*device);
    const Tensor inputs[] = {wave_on(*device, {5, 24}, 1), wave_on(*device, {5, 24}, 2)};
    for (int turn = 0; turn < 3; ++turn)
      CHECK(numbers_of(device->recurring("small", inputs, work)) == numbers_of(work(inputs)));
  }
  CHECK_EQ(emulated_graph_launches(), before);
}

TEST("cuda graphs: work that cannot be recorded is done as it is") {
  const auto device = open_emulated_cuda(kGraphs);
  const Tensor inputs[] = {wave_on(*device, {6}, 1)};
  std::vector<Tensor> kept;
  const std::vector<std::pair<const char*, Backend::Recurring>> kinds = {
      {"uploads",
       [&](std::span<const Tensor> x) -> std::vector<Tensor> {
         return {ops::add(x[0], wave_on(*device, {6}, 3))};
       }},
      {"downloads",
       [&](std::span<const Tensor> x) -> std::vector<Tensor> {
         CHECK_EQ(ops::to_host(x[0]).size(), 6u);
         return {ops::silu(x[0])};
       }},
      {"keeps",
       [&](std::span<const Tensor> x) -> std::vector<Tensor> {
         kept.push_back(ops::silu(x[0]));
         return {ops::add(kept.back(), x[0])};
       }},
  };
  const std::uint64_t before = emulated_graph_launches();
  for (const auto& [name, work] : kinds)
    for (int turn = 0; turn < 4; ++turn)
      CHECK(numbers_of(device->recurring(name, inputs, work)) == numbers_of(work(inputs)));
  CHECK_EQ(emulated_graph_launches(), before);
  // The attempt to record it left one without numbers.
  const auto wanted = ops::to_host(ops::silu(inputs[0]));
  CHECK_EQ(std::ranges::count_if(kept, [&](const Tensor& each) { return ops::to_host(each) == wanted; }),
           static_cast<std::ptrdiff_t>(kept.size()) - 1);
  kept.clear();
  device->synchronize();
}

TEST("cuda graphs: a mistake of the work stays its own") {
  const auto device = open_emulated_cuda(kGraphs);
  const Tensor inputs[] = {wave_on(*device, {6}, 1), wave_on(*device, {7}, 1)};
  const auto work = [](std::span<const Tensor> x) { return std::vector<Tensor>{ops::add(x[0], x[1])}; };
  for (int turn = 0; turn < 3; ++turn) CHECK_THROWS("ERR_SHAPE", device->recurring("wrong", inputs, work));
}

TEST("cuda graphs: many shapes take turns; memory goes back when it is wanted") {
  EmulatedMachine machine;
  const auto device = open_emulated_cuda(kGraphs);
  const Small work(*device);
  const auto run = [&](std::int64_t rows) {
    const Tensor inputs[] = {wave_on(*device, {rows, 24}, 1), wave_on(*device, {rows, 24}, 2)};
    CHECK(numbers_of(device->recurring("small " + std::to_string(rows), inputs, work)) ==
          numbers_of(work(inputs)));
  };
  for (int turn = 0; turn < 3; ++turn)
    for (std::int64_t rows = 1; rows <= 12; ++rows) run(rows);
  const std::size_t recorded = device->memory().used;
  for (int turn = 0; turn < 3; ++turn)
    for (std::int64_t rows = 1; rows <= 6; ++rows) run(rows);
  CHECK(device->memory().used > recorded);  // six shapes stay, and are counted
  device->trim();
  CHECK(device->memory().used <= recorded);
  const std::size_t live = device->memory().used;
  for (int turn = 0; turn < 3; ++turn) run(3000);
  // More than the pool can give back, and less than it and the recording: that gives way.
  const MemoryStats stats = device->memory();
  const std::size_t cached = stats.held - stats.used, held_by_recording = stats.used - live;
  CHECK(held_by_recording > std::size_t{1} << 20);
  const std::uint64_t before = emulated_graph_launches();
  machine.memory(stats.held);
  const Tensor large = device->empty({static_cast<std::int64_t>((cached + held_by_recording / 2) / 4)});
  CHECK(large.defined());
  machine.memory(std::size_t{4} << 30);
  for (int turn = 0; turn < 3; ++turn) run(3000);  // for good
  CHECK_EQ(emulated_graph_launches(), before);
}

TEST("cuda graphs: a job that is stopped while it records stops; the next one records") {
  const auto device = open_emulated_cuda(kGraphs);
  const Small work(*device);
  const Tensor inputs[] = {wave_on(*device, {5, 24}, 1), wave_on(*device, {5, 24}, 2)};
  std::vector<Tensor> kept;
  std::atomic<bool> stop = false;
  const auto stopping = [&](std::span<const Tensor> x) {
    if (stop) kept.push_back(ops::silu(x[0]));
    const CancelScope scope(&stop);
    return work(x);
  };
  const auto wanted = numbers_of(work(inputs));
  device->recurring("small", inputs, stopping);
  stop = true;
  CHECK_THROWS("ERR_ABORTED", device->recurring("small", inputs, stopping));
  stop = false;
  const std::uint64_t before = emulated_graph_launches();
  for (int turn = 0; turn < 2; ++turn)
    CHECK(numbers_of(device->recurring("small", inputs, stopping)) == wanted);
  CHECK_EQ(emulated_graph_launches() - before, 2u);
  kept.clear();  // back to the pool of the recording that was not made
}

TEST("cuda graphs: a device that is lost while it records says so") {
  EmulatedMachine machine;
  const auto device = open_emulated_cuda(kGraphs);
  const Tensor inputs[] = {wave_on(*device, {6}, 1)};
  bool lose = false;
  const auto work = [&](std::span<const Tensor> x) {
    if (lose) machine.sticky_error(700);
    return std::vector<Tensor>{ops::silu(x[0])};
  };
  device->recurring("silu", inputs, work);
  lose = true;
  CHECK_THROWS("ERR_DEVICE_LOST", device->recurring("silu", inputs, work));
  machine.sticky_error(0);
}

TEST("cuda graphs: steps of FLUX give the same bits, also after its layout has changed") {
  const auto device = open_emulated_cuda(kGraphs);
  const models::FluxConfig config = small_flux();
  models::FluxTransformer model(config);
  model.materialize(*device, DType::bf16);
  float first = 0;
  for (const auto& each : model.named_parameters()) {
    const auto values = wave(each.shape.numel(), first += 0.1f);
    model.load(each.name, DType::f32, values.data(), values.size());
  }
  const std::uint64_t before = emulated_graph_launches();
  const auto steps = [&](float start) {
    const Tensor pooled = wave_on(*device, {1, 10}, start);
    const Tensor table = model.modulations({900, 600, 300, 100}, {3500, 3500, 3500, 3500}, pooled);
    for (std::int64_t step = 0; step < 4; ++step) {
      models::FluxInputs in;
      in.latents = wave_on(*device, {2, 6, 8}, start + static_cast<float>(step));
      in.text = wave_on(*device, {1, 5, 12}, start);
      in.grid_rows = 2, in.grid_cols = 3;
      in.modulations = ops::expand(table.narrow(0, step, 1), {2, model.modulation_width()});
      const auto got = ops::to_host(model.forward(in));
      in.modulations = {};
      in.timesteps.assign(2, std::vector<float>{900, 600, 300, 100}[static_cast<std::size_t>(step)]);
      in.guidance = {3500, 3500};
      in.pooled = pooled;
      CHECK(got == ops::to_host(model.forward(in)));
    }
  };
  steps(1);
  CHECK_EQ(emulated_graph_launches() - before, 3u);  // four steps of one shape
  steps(2);
  CHECK_EQ(emulated_graph_launches() - before, 7u);
  const auto ones = [](std::span<float> out, std::uint64_t, const std::string&) {
    std::ranges::fill(out, 0.01f);
  };
  nn::add_lora(model, {.rank = 2, .alpha = 4, .targets = {"attn.to_q", "proj_out"}}, ones);
  steps(2);
  CHECK_EQ(emulated_graph_launches() - before, 10u);  // recorded anew
}

}  // namespace danceflux::test
