// Modules: names, loading, what trains, adapters.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "goldens.h"
#include "harness.h"
#include "nn/lora.h"
#include "ops/ops.h"

namespace danceflux::test {
namespace {

/// Two layers in one product, a norm and a table.
struct Small : nn::Module {
  nn::Linear qkv{*this, {{"attn.q", 3}, {"attn.k", 2}}, 4};
  nn::LayerNorm norm{*this, "norm", 4, 1e-5f};
  nn::Linear out{*this, "attn.out.0", 4, 2, false};
  nn::Embedding table{*this, "table", 5, 4};
};

std::vector<std::string> names_of(const std::vector<nn::NamedParameter>& parameters) {
  std::vector<std::string> names;
  for (const auto& named : parameters) names.push_back(named.name);
  return names;
}

void load_all(Small& model) {
  for (const auto& named : model.named_parameters()) {
    const auto values = formula(named.name, named.shape.numel(), 0, 1);
    model.load(named.name, DType::f32, values.data(), values.size());
  }
}

nn::NamedParameter find(const nn::Module& model, const std::string& name) {
  for (const auto& named : model.named_parameters()) {
    if (named.name == name) return named;
  }
  fail("ERR_NAME", "no parameter ", name);
}

std::vector<float> numbers(const nn::Module& model, const std::string& name) {
  return ops::to_host(find(model, name).value());
}

const nn::UniformFill kCounting = [](std::span<float> out, std::uint64_t seed, const std::string&) {
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<float>(i % 7) / 7 - static_cast<float>(seed);
};

}  // namespace

TEST("module: published names of fused storage, in order") {
  Small model;
  const std::vector<std::string> wanted{"attn.q.weight",     "attn.k.weight", "attn.q.bias",
                                        "attn.k.bias",       "norm.weight",   "norm.bias",
                                        "attn.out.0.weight", "table.weight"};
  CHECK(names_of(model.named_parameters()) == wanted);
  CHECK_EQ(model.parameter_count(), std::size_t{20 + 5 + 8 + 8 + 20});
  CHECK_THROWS("ERR_DEVICE", model.load("norm.weight", DType::f32, nullptr, 0));
  const auto device = cpu_device(1);
  CHECK_THROWS("ERR_DTYPE", model.materialize(*device, DType::f64));
  model.materialize(*device, DType::bf16);
  CHECK(model.missing() == wanted);
  CHECK(find(model, "attn.k.weight").value().dtype() == DType::bf16);
  CHECK(find(model, "attn.k.bias").value().dtype() == DType::f32);
  CHECK(find(model, "attn.k.weight").value().shape() == (Shape{2, 4}));
}

TEST("module: loads converted, transposed and unaligned numbers into row ranges") {
  const auto device = cpu_device(1);
  Small model;
  model.materialize(*device, DType::f32);
  load_all(model);
  CHECK(model.missing().empty());
  const auto untouched = numbers(model, "attn.q.weight");

  const std::vector<float> k{1, 2, 3, 4, 5, 6, 7, 8};  // [2, 4]
  std::vector<float> transposed;
  for (std::size_t column = 0; column < 4; ++column) {
    for (std::size_t row = 0; row < 2; ++row) transposed.push_back(k[row * 4 + column]);
  }
  std::vector<char> stored(1 + 8 * 2);
  convert_elements(stored.data() + 1, DType::bf16, transposed.data(), DType::f32, 8);
  model.load("attn.k.weight", DType::bf16, stored.data() + 1, 8, true);
  CHECK(numbers(model, "attn.k.weight") == k);
  CHECK(numbers(model, "attn.q.weight") == untouched);
  const std::vector<double> wide{1.5, -2, 3, 4};
  model.load("norm.weight", DType::f64, wide.data(), 4);
  CHECK(numbers(model, "norm.weight") == (std::vector<float>{1.5, -2, 3, 4}));
}

TEST("module: refuses what does not fit, by name") {
  const auto device = cpu_device(1);
  Small model;
  model.materialize(*device, DType::f16);
  std::vector<float> values(20, 1.0f);
  CHECK_THROWS("ERR_NAME", model.load("attn.v.weight", DType::f32, values.data(), 8));
  CHECK_THROWS("ERR_SHAPE", model.load("attn.k.weight", DType::f32, values.data(), 20));
  CHECK_THROWS("ERR_SHAPE", model.load("norm.weight", DType::f32, values.data(), 4, true));
  CHECK_THROWS("ERR_DTYPE", model.load("norm.weight", DType::i32, values.data(), 4));
  values[3] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS("ERR_NOT_FINITE", model.load("norm.weight", DType::f32, values.data(), 4));
  values[3] = 70000;  // finite, but not in f16
  model.load("norm.weight", DType::f32, values.data(), 4);
  CHECK_THROWS("ERR_NOT_FINITE", model.load("attn.k.weight", DType::f32, values.data(), 8));
  CHECK_THROWS("ERR_NOT_FINITE", model.load("attn.k.weight", DType::f32, values.data(), 8, true));
}

TEST("module: a large tensor arrives whole") {
  struct Wide : nn::Module {
    nn::Embedding table{*this, "table", 700, 1000};  // several pieces, the last one short
  } model;
  const auto device = cpu_device(1);
  model.materialize(*device, DType::f32);
  const auto values = formula("wide", 700000, 0, 1);
  model.load("table.weight", DType::f32, values.data(), values.size());
  CHECK(numbers(model, "table.weight") == values);
  std::vector<float> transposed(values.size());
  for (std::size_t r = 0; r < 700; ++r) {
    for (std::size_t c = 0; c < 1000; ++c) transposed[c * 700 + r] = values[r * 1000 + c];
  }
  model.load("table.weight", DType::f32, transposed.data(), transposed.size(), true);
  CHECK(numbers(model, "table.weight") == values);
}

TEST("module: one wanted part trains its storage, the optimizer sees that part only") {
  const auto device = cpu_device(1);
  Small model;
  model.materialize(*device, DType::f32);
  load_all(model);
  model.set_trainable([](const std::string& name) { return name == "attn.k.weight"; });
  CHECK(names_of(model.trainable_parameters()) == std::vector<std::string>{"attn.k.weight"});
  const Tensor x = ops::from_host(*device, {1, 4}, std::vector<float>{1, 2, 3, 4});
  for (int pass = 1; pass <= 2; ++pass) {
    Tape tape;
    model.watch(tape);
    const auto parts = model.qkv.parts(x);
    tape.backward(parts[1], ops::full(*device, {1, 2}, 1));
    const auto gradient = ops::to_host(model.trainable_parameters()[0].gradient());
    for (std::size_t i = 0; i < 8; ++i)
      CHECK_EQ(gradient[i], static_cast<float>(pass * (1 + static_cast<int>(i) % 4)));
  }
  CHECK(!find(model, "norm.weight").gradient());
  model.zero_gradients();
  CHECK(ops::to_host(find(model, "attn.k.weight").gradient()) == std::vector<float>(8, 0.0f));
  model.set_trainable([](const std::string&) { return false; });
  CHECK(!find(model, "attn.k.weight").gradient());
}

TEST("lora: names, start, effect and removal") {
  const auto device = cpu_device(1);
  Small model;
  const nn::LoraConfig config{.rank = 2, .alpha = 3, .targets = {"attn.k", "out.0"}, .seed = 0};
  CHECK_THROWS("ERR_DEVICE", nn::add_lora(model, config, kCounting));
  model.materialize(*device, DType::f32);
  load_all(model);
  const auto before = names_of(model.named_parameters());
  const Tensor x = ops::from_host(*device, {3, 4}, formula("x", 12, 0, 1));
  const auto plain = ops::to_host(model.qkv(x));

  CHECK_THROWS("ERR_LORA", nn::add_lora(model, {.rank = 0, .targets = {"attn.k"}}, kCounting));
  CHECK_THROWS("ERR_LORA", nn::add_lora(model, {.rank = 2, .targets = {}}, kCounting));
  CHECK_THROWS("ERR_LORA", nn::add_lora(model, {.rank = 2, .targets = {"attn.k", "k_proj"}}, kCounting));
  CHECK_THROWS("ERR_LORA", nn::add_lora(model, {.rank = 2, .targets = {"ttn.k"}}, kCounting));
  CHECK(names_of(model.named_parameters()) == before);

  CHECK(nn::add_lora(model, config, kCounting) == (std::vector<std::string>{"attn.k", "attn.out.0"}));
  CHECK_THROWS("ERR_LORA", nn::add_lora(model, config, kCounting));
  CHECK(model.missing().empty());
  CHECK(model.trainable_parameters().empty());
  CHECK(find(model, "attn.k.lora_A.weight").shape == (Shape{2, 4}));
  CHECK(find(model, "attn.k.lora_B.weight").shape == (Shape{2, 2}));
  CHECK_NEAR(numbers(model, "attn.k.lora_A.weight").at(1), 0.5 / 7, 1e-7);  // 1/sqrt(4)
  CHECK(ops::to_host(model.qkv(x)) == plain);  // B is zero: the first picture is the base model's

  const auto b = formula("b", 4, 0, 1);
  model.load("attn.k.lora_B.weight", DType::f32, b.data(), 4);
  const auto adapted = ops::to_host(model.qkv(x));
  CHECK(adapted != plain);
  nn::merge_lora(model);
  CHECK(names_of(model.named_parameters()) == before);
  const auto merged = ops::to_host(model.qkv(x));
  for (std::size_t i = 0; i < merged.size(); ++i) CHECK_NEAR(merged[i], adapted[i], 1e-5);

  nn::add_lora(model, config, kCounting);
  nn::remove_lora(model);
  CHECK(names_of(model.named_parameters()) == before);
  CHECK(ops::to_host(model.qkv(x)) == merged);
}

}  // namespace danceflux::test
