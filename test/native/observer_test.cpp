// What an observer sees, and that being seen changes nothing.
#include <cmath>
#include <cstring>
#include <limits>

#include "align/recorder.h"
#include "autograd/observer.h"
#include "autograd/tape.h"
#include "backend/cpu/cpu_backend.h"
#include "harness.h"
#include "io/tensor_file.h"
#include "models/flux.h"
#include "ops/ops.h"
#include "temporary.h"
#include "wrapped_backend.h"

namespace danceflux::test {
namespace {

struct Seen {
  std::string name, op;
  SightRole role;
  int index;
};

class Watching final : public Observer {
 public:
  explicit Watching(Level level) : Observer(level) { install(this); }
  ~Watching() override { install(nullptr); }
  std::vector<Seen> seen;

  int count(const std::string& name, SightRole role) const {
    int found = 0;
    for (const Seen& entry : seen) found += entry.name == name && entry.role == role;
    return found;
  }

 private:
  void see(const Sight& sight) override { seen.push_back({sight.name, sight.op, sight.role, sight.index}); }
};

models::FluxConfig small() {
  models::FluxConfig config;
  config.in_channels = 8;
  config.num_layers = 2;
  config.num_single_layers = 1;
  config.attention_head_dim = 8;
  config.num_attention_heads = 2;
  config.joint_attention_dim = 12;
  config.pooled_projection_dim = 10;
  config.axes_dims_rope = {2, 2, 4};
  return config;
}

Tensor numbers(Backend& device, const Shape& shape, int salt) {
  std::vector<float> values(static_cast<std::size_t>(shape.numel()));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = 0.3f * std::sin(0.7f * static_cast<float>(i) + static_cast<float>(salt));
  return ops::from_host(device, shape, values);
}

struct Model {
  explicit Model(Backend& device) : flux(small()) {
    flux.materialize(device, DType::f32);
    int salt = 0;
    for (const nn::NamedParameter& parameter : flux.named_parameters())
      ops::copy_(parameter.value(), numbers(device, parameter.shape, ++salt));
    flux.set_trainable([](const std::string&) { return true; });
    inputs.latents = numbers(device, {2, 6, 8}, 101);
    inputs.text = numbers(device, {2, 3, 12}, 102);
    inputs.pooled = numbers(device, {2, 10}, 103);
    inputs.timesteps = {300, 700};
    inputs.grid_rows = 2;
    inputs.grid_cols = 3;
  }

  /// The velocity, then the gradients of all parameters.
  std::vector<float> step(int recompute) {
    flux.zero_gradients();
    Tape tape;
    flux.watch(tape);
    const Tensor velocity = flux.forward(inputs, recompute);
    tape.backward(velocity, numbers(flux.device(), velocity.shape(), 104));
    std::vector<float> all = ops::to_host(velocity);
    for (const nn::NamedParameter& parameter : flux.trainable_parameters()) {
      const std::vector<float> gradient = ops::to_host(parameter.gradient());
      all.insert(all.end(), gradient.begin(), gradient.end());
    }
    return all;
  }

  models::FluxTransformer flux;
  models::FluxInputs inputs;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST("observer: no bit changes, whatever is recorded") {
  const auto device = cpu::open_cpu({});
  Model model(*device);
  for (const int recompute : {0, -1}) {
    const std::vector<float> alone = model.step(recompute);
    for (const Observer::Level level : {Observer::Level::block, Observer::Level::op}) {
      Watching watching(level);
      CHECK(same_bits(model.step(recompute), alone));
      CHECK(!watching.seen.empty());
    }
    const TemporaryFolder folder;
    align::Recorder recorder({Observer::Level::op, align::Summary::full, folder.path(), 4096});
    Observer::install(&recorder);
    CHECK(same_bits(model.step(recompute), alone));
    Observer::install(nullptr);
    recorder.flush();
    CHECK(recorder.take().size() == recorder.count());
  }
}

TEST("observer: ops have their layers' names, once, forward and backward") {
  const auto device = cpu::open_cpu({});
  Model model(*device);
  for (const int recompute : {0, -1}) {
    Watching watching(Observer::Level::op);
    model.step(recompute);
    for (const char* name :
         {"flux.x_embedder", "flux.transformer_blocks.1.attn.to_q",
          "flux.transformer_blocks.0.attn.norm_q.rotated", "flux.transformer_blocks.0.attention",
          "flux.transformer_blocks.0.attn.to_out.0", "flux.transformer_blocks.0.ff.net.0.proj.activated",
          "flux.transformer_blocks.0.gated_residual.3", "flux.single_transformer_blocks.0.proj_mlp",
          "flux.proj_out"}) {
      CHECK_EQ(watching.count(name, SightRole::output), 1);
      const int gradients = watching.count(name, SightRole::gradient);
      if (gradients != 1)
        fail_at(__FILE__, __LINE__, name, " with ", recompute, ": expected 1 gradient, got ", gradients);
    }
    CHECK_EQ(watching.count("flux.transformer_blocks.0", SightRole::output), 2);
    CHECK_EQ(watching.count("flux.transformer_blocks.0", SightRole::input), 2);
  }
}

TEST("observer: the same names in the same order with blocks run again") {
  const auto device = cpu::open_cpu({});
  Model model(*device);
  std::vector<std::string> order[2];
  for (const int recompute : {0, -1}) {
    Watching watching(Observer::Level::op);
    model.step(recompute);
    for (const Seen& entry : watching.seen) {
      if (entry.role != SightRole::gradient) order[-recompute].push_back(entry.name);
    }
  }
  CHECK(order[0] == order[1]);
}

TEST("observer: a declined shortcut is still one op") {
  const auto wrapped = std::make_shared<WrappedBackend>(cpu::open_cpu({}));
  const auto device = cpu::open_cpu({});
  Model plain(*device), model(*wrapped);
  wrapped->refused = shortcut_names();
  std::vector<std::string> names[2];
  Model* models[] = {&plain, &model};
  for (int i = 0; i < 2; ++i) {
    Watching watching(Observer::Level::op);
    models[i]->step(0);
    for (const Seen& entry : watching.seen) names[i].push_back(entry.name + " " + entry.op);
  }
  CHECK(names[0] == names[1]);
}

TEST("recorder: tensors, views included, come back from its files") {
  const auto device = cpu::open_cpu({});
  const TemporaryFolder folder;
  align::Recorder recorder({Observer::Level::op, align::Summary::full, folder.path(), 256});
  const Tensor small_one = numbers(*device, {3, 5}, 1), large = numbers(*device, {4, 40}, 2);
  recorder.stage("here", "here");
  recorder.record("turned", "stage", "output", small_one.transpose(0, 1));
  recorder.record("large", "stage", "output", large);
  recorder.flush();
  const std::vector<std::string> lines = recorder.take();
  CHECK_EQ(lines.size(), 2u);
  CHECK(lines[0].find("\"stage\":\"here\",\"name\":\"turned\"") != std::string::npos);
  CHECK(lines[0].find("\"shape\":[5, 3]") != std::string::npos);
  std::vector<float> read(15);
  const auto file = io::open_tensor_file(folder.path() + "/tensors-00000.safetensors");
  io::read_rows(file->find("0"), 0, -1, false, DType::f32, read.data());
  CHECK(read == ops::to_host(small_one.transpose(0, 1)));
  std::vector<float> wide(160);
  const auto second = io::open_tensor_file(folder.path() + "/tensors-00001.safetensors");
  io::read_rows(second->find("1"), 0, -1, false, DType::f32, wide.data());
  CHECK(wide == ops::to_host(large));
}

TEST("recorder: a disk that cannot be written stops it, not the job") {
  const auto device = cpu::open_cpu({});
  align::Recorder recorder({Observer::Level::op, align::Summary::full, "/nowhere/at/all", 16});
  recorder.record("a", "stage", "output", numbers(*device, {64}, 1));
  recorder.record("b", "stage", "output", numbers(*device, {64}, 1));
  CHECK_THROWS("ERR_FILE", recorder.take());
  CHECK(recorder.take().empty());
}

TEST("pieces: every element in row-major order, however it lies") {
  const auto device = cpu::open_cpu({});
  const Tensor x = numbers(*device, {3, 1200, 500}, 3).transpose(0, 2);
  std::vector<float> together;
  align::for_each_piece(x, [&](const std::byte* data, std::size_t elements) {
    const auto* values = reinterpret_cast<const float*>(data);
    together.insert(together.end(), values, values + elements);
  });
  CHECK(together == ops::to_host(x));
}

TEST("measure: numbers of a tensor, in pieces as at once") {
  std::vector<float> values(5000);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i));
  values[7] = std::numeric_limits<float>::quiet_NaN();
  values[8] = -std::numeric_limits<float>::infinity();
  align::Measure whole, parts;
  whole.add(values.data(), DType::f32, values.size());
  for (std::size_t start = 0; start < values.size(); start += 700)
    parts.add(values.data() + start, DType::f32, std::min<std::size_t>(700, values.size() - start));
  CHECK_EQ(whole.nan, 1u);
  CHECK_EQ(whole.inf, 1u);
  CHECK(whole.min >= -1 && whole.max <= 1 && whole.max > 0.999);
  CHECK_EQ(parts.crc, whole.crc);
  for (std::size_t k = 0; k < align::kSketches; ++k) CHECK_NEAR(parts.sketch[k], whole.sketch[k], 1e-9);
  CHECK_EQ(align::crc32(0, "123456789", 9), 0xcbf43926u);
}

TEST("measure: distances of a pair") {
  const float a[] = {1, 2, 3, 0, std::numeric_limits<float>::infinity(), -0.0f};
  const float b[] = {1, std::nextafter(2.0f, 3.0f), 4, 0, 5, 0.0f};
  align::PairMeasure pair;
  pair.add(a, DType::f32, b, DType::f32, 6);
  CHECK_EQ(pair.count, 6u);
  CHECK_EQ(pair.odd, 1u);
  CHECK_EQ(pair.finite, 5u);
  CHECK_EQ(pair.equal, 3u);
  CHECK_EQ(pair.within_one, 4u);
  CHECK_EQ(pair.max_absolute, 1.0);
  CHECK_EQ(pair.worst, 2u);
  CHECK_EQ(pair.ulps[0], 3u);
  CHECK_EQ(pair.ulps[1], 1u);
  CHECK_EQ(pair.ulps[align::kUlpBuckets - 1], 1u);
  CHECK_NEAR(pair.dot, 1 + 2 * 2.0000002384 + 12, 1e-6);
}

}  // namespace danceflux::test
