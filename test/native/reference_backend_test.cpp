// The oracle itself, against PyTorch 2.13 in double precision. op_numbers.py tells how the numbers are made.
#include <cmath>

#include "harness.h"
#include "op_rows.h"
#include "reference_backend.h"

namespace danceflux::test {
namespace {

constexpr float kEps = 0x1p-10f;

Tensor filled(Backend& device, const Shape& shape, int k) {
  const Tensor x = device.empty(shape);
  std::vector<double> values;
  for (std::int64_t i = 0; i < x.numel(); ++i) values.push_back(std::sin(0.7 * static_cast<double>(i) + k));
  ReferenceBackend::write(x, values);
  return x;
}

double wave(std::size_t i) { return std::cos(0.3 * static_cast<double>(i)); }

Tensor waves_like(const Tensor& x) {
  const Tensor seed = ops::empty_like(x);
  std::vector<double> values;
  for (std::size_t i = 0; i < static_cast<std::size_t>(x.numel()); ++i) values.push_back(wave(i));
  ReferenceBackend::write(seed, values);
  return seed;
}

double told(const Tensor& x) {
  const auto values = ReferenceBackend::read(x);
  double sum = 0;
  for (std::size_t i = 0; i < values.size(); ++i) sum += values[i] * wave(i);
  return sum;
}

struct Row {
  const char* name;
  std::vector<Shape> shapes;
  Tensor (*op)(In in);
  std::vector<double> numbers;  // of the result, then of the gradient of each input
};

const std::vector<Row>& torch_rows() {
  static const std::vector<Row> rows = {
      {"silu",
       {{3, 5}},
       [](In in) { return ops::silu(ops::affine(in[0], 3)); },
       {-1.0477066409, 19.9260214579}},
      {"gelu_tanh",
       {{3, 5}},
       [](In in) { return ops::unary(UnaryOp::gelu_tanh, ops::affine(in[0], 3)); },
       {-1.46517684726, 19.6140652569}},
      {"gelu_erf",
       {{3, 5}},
       [](In in) { return ops::unary(UnaryOp::gelu_erf, ops::affine(in[0], 3)); },
       {-1.46474777905, 19.6116804413}},
      {"quick_gelu",
       {{3, 5}},
       [](In in) { return ops::unary(UnaryOp::quick_gelu, ops::affine(in[0], 3)); },
       {-1.43474685153, 19.6388180447}},
      {"clamp",
       {{3, 5}},
       [](In in) { return ops::unary(UnaryOp::clamp, in[0], -0.5f, 0.75f); },
       {0.401182065966, 4.6137396659}},
      {"maximum",
       {{3, 5}, {5}},
       [](In in) { return ops::binary(BinaryOp::max, in[0], in[1]); },
       {0.076843035972, 3.58773645058, -1.04205614971}},
      {"div",
       {{3, 1}, {1, 5}},
       [](In in) { return ops::div(in[0], ops::affine(in[1], 1, 2)); },
       {-2.50405304875, -1.07259848559, 0.751982060527}},
      {"mean",
       {{2, 3, 4}},
       [](In in) {
         return ops::mean(in[0], {0, 2});
       },
       {0.260127758379, 0.341218558484}},
      {"amax",
       {{4, 7}},
       [](In in) { return ops::reduce(ReduceOp::max, in[0], {1}); },
       {3.27279109312, 1.29594498763}},
      {"softmax",
       {{3, 7}},
       [](In in) { return ops::softmax(ops::affine(in[0], 3)); },
       {0.699806600547, 0.209649232549}},
      {"linear",
       {{2, 3, 5}, {4, 5}, {4}},
       [](In in) { return ops::linear(in[0], in[1], in[2]); },
       {0.90948870339, 2.76400643602, -1.34135520176, 2.44891590834}},
      {"layer_norm",
       {{2, 3, 6}, {6}, {6}},
       [](In in) { return ops::layer_norm(in[0], in[1], in[2], kEps); },
       {4.37626110648, 1.63281514363, -2.25293709668, -0.936864098552}},
      {"rms_norm",
       {{2, 3, 6}, {6}},
       [](In in) { return ops::rms_norm(in[0], in[1], kEps); },
       {4.6705534752, 4.24879331229, 4.25545494376}},
      {"group_norm",
       {{2, 4, 3, 2}, {4}, {4}},
       [](In in) { return ops::group_norm(in[0], 2, in[1], in[2], kEps); },
       {-9.27010060177, 15.3394381067, -1.39791933804, 0.712464938437}},
      {"rope",
       {{2, 3, 2, 4}, {3, 2}, {3, 2}},
       [](In in) { return ops::rope(in[0], in[1], in[2]); },
       {0.169320121813, 1.79467987742, 0.874796176016, -0.377915441712}},
      {"conv2d",
       {{2, 3, 5, 4}, {2, 3, 3, 2}, {2}},
       [](In in) { return ops::conv2d(in[0], in[1], in[2], {.stride = 2, .pad_left = 1, .pad_bottom = 2}); },
       {4.9999945575, -1.5884313853, -1.681694081, 2.78379823139}},
      {"upsample",
       {{1, 2, 3, 2}},
       [](In in) { return ops::upsample_nearest_2x(in[0]); },
       {2.56906439635, -2.93006749244}},
      {"attention",
       {{2, 3, 2, 4}, {2, 5, 2, 4}, {2, 5, 2, 4}, {1, 2, 3, 5}},
       [](In in) { return ops::attention(in[0], in[1], in[2], in[3], {.scale = 0.625f}); },
       {-1.42765492035, 2.02073965457, 0.183256691246, 0.186306381131, 0.218348634841}},
      {"causal attention",
       {{1, 4, 2, 4}, {1, 4, 2, 4}, {1, 4, 2, 4}},
       [](In in) { return ops::attention(in[0], in[1], in[2], {}, {.scale = 0.625f, .causal = true}); },
       {1.03348068481, 0.0541596121296, 0.73378815691, 8.99629835462}},
      {"modulated norm",
       {{2, 3, 6}, {2, 6}, {2, 6}},
       [](In in) { return ops::modulated_norm(in[0], in[1], in[2], kEps); },
       {0.864507883073, 4.35456895657, 0.0168607898671, -0.648231309807}},
  };
  return rows;
}

}  // namespace

TEST("reference: results and gradients as in PyTorch") {
  const auto device = std::make_shared<ReferenceBackend>();
  for (const Row& row : torch_rows()) {
    std::vector<Tensor> inputs;
    Tape tape;
    for (const Shape& shape : row.shapes)
      tape.watch(inputs.emplace_back(filled(*device, shape, static_cast<int>(inputs.size()))));
    const Tensor y = row.op(inputs);
    tape.backward(y, waves_like(y));
    std::vector<Tensor> tensors{y};
    for (const Tensor& input : inputs) tensors.push_back(tape.gradient(input));
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if (!tensors[i]) continue;  // the tables of rope are constants here
      const double got = told(tensors[i]);
      if (!(std::abs(got - row.numbers[i]) <= 1e-9)) {
        fail_at(__FILE__, __LINE__, row.name, ", number ", i, ": expected ", row.numbers[i], ", got ", got);
      }
    }
  }
}

TEST("reference: three steps of AdamW as in PyTorch") {
  const auto device = std::make_shared<ReferenceBackend>();
  const Tensor p = filled(*device, {3, 5}, 0), g = filled(*device, {3, 5}, 1);
  const Tensor m = ops::full(*device, {3, 5}, 0), v = ops::full(*device, {3, 5}, 0);
  for (const std::int64_t step : {1, 2, 3}) {
    ops::adamw_(p, p, m, v, g, {.lr = 0x1p-6f, .eps = 0x1p-27f, .weight_decay = 0.125f, .step = step});
  }
  CHECK_NEAR(told(p), 0.738426565982, 1e-9);
}

TEST("reference: memory that was never written is not a number") {
  const auto device = std::make_shared<ReferenceBackend>();
  for (const double value : ReferenceBackend::read(device->empty({7}))) CHECK(std::isnan(value));
}

TEST("reference: stored weights are rounded, activations keep their digits") {
  const auto device = std::make_shared<ReferenceBackend>();
  for (const auto& [dtype, wanted] :
       {std::pair{DType::f32, 0.1}, {DType::bf16, 0.10009765625}, {DType::f16, 0.0999755859375}}) {
    const Tensor x = device->empty({1}, dtype);
    ReferenceBackend::write(x, {0.1});
    const auto values = ReferenceBackend::read(x);
    CHECK_EQ(values[0], wanted);
  }
}

}  // namespace danceflux::test
