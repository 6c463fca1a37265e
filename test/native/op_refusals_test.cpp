// What ops refuse, before any device sees it, and in which words.
#include <atomic>
#include <functional>

#include "core/cancel.h"
#include "harness.h"
#include "ops/ops.h"
#include "reference_backend.h"

namespace danceflux::test {
namespace {

struct Bench {
  std::shared_ptr<Backend> device = std::make_shared<ReferenceBackend>(),
                           other = std::make_shared<ReferenceBackend>();
  Tensor f(const Shape& shape) const { return ops::full(*device, shape, 1); }
  Tensor stored(const Shape& shape) const { return device->empty(shape, DType::bf16); }
  Tensor whole(const Shape& shape) const { return device->empty(shape, DType::i32); }
  Tensor elsewhere(const Shape& shape) const { return ops::full(*other, shape, 1); }
};

struct Refusal {
  const char* code;
  const char* words;  // some of the message
  std::function<void(const Bench&)> call;
};

const Refusal kMovesAndMaps[] = {
    {"ERR_SHAPE", "reshape: expected a tensor, got none", [](const Bench&) { ops::reshape({}, {1}); }},
    {"ERR_SHAPE", "[2, 3]",
     [](const Bench& b) {
       ops::reshape(b.f({2, 3}), {4});
     }},
    {"ERR_SHAPE", "permute",
     [](const Bench& b) {
       ops::permute(b.f({2, 3}), {0, 0});
     }},
    {"ERR_SHAPE", "narrow",
     [](const Bench& b) {
       ops::narrow(b.f({2, 3}), 1, 2, 2);
     }},
    {"ERR_SHAPE", "split: expected lengths that add up to 3",
     [](const Bench& b) {
       ops::split(b.f({2, 3}), std::vector<std::int64_t>{1, 1}, 1);
     }},
    {"ERR_SHAPE", "concat: expected at least one", [](const Bench&) { ops::concat({}, 0); }},
    {"ERR_SHAPE", "concat: expected parts that differ along axis 0 only, got [2, 3] and [2, 4]",
     [](const Bench& b) {
       ops::concat(std::vector<Tensor>{b.f({2, 3}), b.f({2, 4})}, 0);
     }},
    {"ERR_DTYPE", "concat: expected one dtype",
     [](const Bench& b) {
       ops::concat(std::vector<Tensor>{b.f({2}), b.stored({2})}, 0);
     }},
    {"ERR_DEVICE", "concat: expected tensors of one device",
     [](const Bench& b) {
       ops::concat(std::vector<Tensor>{b.f({2}), b.elsewhere({2})}, 0);
     }},
    {"ERR_DTYPE", "cast: expected two float types, got i32",
     [](const Bench& b) { ops::cast(b.whole({2}), DType::f32); }},
    {"ERR_SHAPE", "upsample_nearest_2x: expected x [B, C, h, w] of rank 4",
     [](const Bench& b) {
       ops::upsample_nearest_2x(b.f({2, 3}));
     }},
    {"ERR_SHAPE", "from_host: expected 4 values",
     [](const Bench& b) {
       ops::from_host(*b.device, {2, 2}, std::vector<float>(3));
     }},
    {"ERR_DTYPE", "silu: expected activations that reference computes in, got bf16",
     [](const Bench& b) { ops::silu(b.stored({2})); }},
    {"ERR_SHAPE", "add: expected shapes that broadcast, got [2, 3] and [2, 4]",
     [](const Bench& b) {
       ops::add(b.f({2, 3}), b.f({2, 4}));
     }},
    {"ERR_SHAPE", "mul: expected a tensor, got none", [](const Bench& b) { ops::mul(b.f({2}), {}); }},
    {"ERR_DEVICE", "mul", [](const Bench& b) { ops::mul(b.f({2}), b.elsewhere({2})); }},
    {"ERR_SHAPE", "expected an axis within [2, 3], got 2",
     [](const Bench& b) {
       ops::sum(b.f({2, 3}), {2});
     }},
    {"ERR_SHAPE", "reduce: expected at least one element",
     [](const Bench& b) {
       ops::mean(b.f({2, 0}), {1});
     }},
    {"ERR_SHAPE", "sum_to",
     [](const Bench& b) {
       ops::sum_to(b.f({2, 3}), {2, 2});
     }},
    {"ERR_SHAPE", "softmax", [](const Bench& b) { ops::softmax(b.f({})); }},
};

const Refusal kLayers[] = {
    {"ERR_SHAPE", "matmul: expected [..., M, K] and [..., K, N], got [2, 3] and [4, 5]",
     [](const Bench& b) {
       ops::matmul(b.f({2, 3}), b.f({4, 5}));
     }},
    {"ERR_SHAPE", "matmul: expected at most two leading axes",
     [](const Bench& b) {
       ops::matmul(b.f({1, 1, 1, 2, 3}), b.f({3, 2}));
     }},
    {"ERR_DTYPE", "matmul: expected b in f32, bf16 or f16, got i32",
     [](const Bench& b) {
       ops::matmul(b.f({2, 3}), b.whole({3, 2}));
     }},
    {"ERR_SHAPE", "linear: expected x [..., Din] and weight [Dout, Din], got [2, 3] and [3, 4]",
     [](const Bench& b) {
       ops::linear(b.f({2, 3}), b.f({3, 4}), {});
     }},
    {"ERR_SHAPE", "linear: expected bias of shape [4], got [3]",
     [](const Bench& b) {
       ops::linear(b.f({2, 3}), b.f({4, 3}), b.f({3}));
     }},
    {"ERR_DTYPE", "linear: expected bias in f32, got bf16",
     [](const Bench& b) {
       ops::linear(b.f({2, 3}), b.f({4, 3}), b.stored({4}));
     }},
    {"ERR_SHAPE", "layer_norm: expected weight of shape [3]",
     [](const Bench& b) {
       ops::layer_norm(b.f({2, 3}), b.f({2}), {}, 1e-5f);
     }},
    {"ERR_SHAPE", "group_norm: expected x [B, C, ...] with C a multiple of 4 groups",
     [](const Bench& b) {
       ops::group_norm(b.f({2, 6, 2}), 4, {}, {}, 1e-5f);
     }},
    {"ERR_SHAPE", "rope: expected an even head width",
     [](const Bench& b) {
       ops::rope(b.f({1, 2, 1, 3}), b.f({2, 1}), b.f({2, 1}));
     }},
    {"ERR_SHAPE", "rope: expected cos and sin of shape [2, 2], got [3, 2]",
     [](const Bench& b) {
       ops::rope(b.f({1, 2, 1, 4}), b.f({3, 2}), b.f({3, 2}));
     }},
    {"ERR_SHAPE", "embedding: expected ids from 0 to 2, got 3",
     [](const Bench& b) {
       ops::embedding(b.f({3, 2}), b.whole({1}), std::vector<std::int32_t>{3});
     }},
    {"ERR_SHAPE", "embedding: expected ids from 0 to 2, got -1",
     [](const Bench& b) {
       ops::embedding(b.f({3, 2}), b.whole({1}), std::vector<std::int32_t>{-1});
     }},
    {"ERR_SHAPE", "embedding: expected 2 host ids",
     [](const Bench& b) {
       ops::embedding(b.f({3, 2}), b.whole({2}), std::vector<std::int32_t>{0});
     }},
    {"ERR_DTYPE", "embedding: expected ids in i32",
     [](const Bench& b) {
       ops::embedding(b.f({3, 2}), b.f({1}), std::vector<std::int32_t>{0});
     }},
    {"ERR_SHAPE", "conv2d: expected x [B, C, h, w]",
     [](const Bench& b) {
       ops::conv2d(b.f({1, 2, 3, 3}), b.f({1, 3, 1, 1}), {}, {});
     }},
    {"ERR_SHAPE", "conv2d: expected a padded image no smaller than the window",
     [](const Bench& b) {
       ops::conv2d(b.f({1, 2, 2, 2}), b.f({1, 2, 3, 3}), {}, {});
     }},
    {"ERR_SHAPE", "conv2d: expected a positive stride",
     [](const Bench& b) {
       ops::conv2d(b.f({1, 2, 2, 2}), b.f({1, 2, 1, 1}), {}, {.stride = 0});
     }},
    {"ERR_SHAPE", "attention: expected k of shape [1, 3, 2, 4], got [1, 3, 1, 4]",
     [](const Bench& b) {
       ops::attention(b.f({1, 2, 2, 4}), b.f({1, 3, 1, 4}), b.f({1, 3, 1, 4}), {}, {});
     }},
    {"ERR_SHAPE", "attention: expected bias of shape [1, 2, 2, 3]",
     [](const Bench& b) {
       ops::attention(b.f({1, 2, 2, 4}), b.f({1, 3, 2, 4}), b.f({1, 3, 2, 4}), b.f({1, 2, 3, 3}), {});
     }},
    {"ERR_SHAPE", "modulated_norm: expected scale of shape [2, 4]",
     [](const Bench& b) {
       ops::modulated_norm(b.f({2, 3, 4}), b.f({1, 4}), b.f({2, 4}), 1e-5f);
     }},
    {"ERR_SHAPE", "gated_residual: expected y of shape [2, 3, 4]",
     [](const Bench& b) {
       ops::gated_residual(b.f({2, 3, 4}), b.f({2, 4}), b.f({2, 3, 3}));
     }},
    {"ERR_SHAPE", "qk_norm_rope: expected weight of shape [4]",
     [](const Bench& b) {
       ops::qk_norm_rope(b.f({1, 2, 1, 4}), b.f({2}), b.f({2, 2}), b.f({2, 2}), 1e-5f);
     }},
};

const Refusal kFlow[] = {
    {"ERR_SHAPE", "flow_step: expected rows of at least one element, got [2, 0]",
     [](const Bench& b) {
       ops::flow_step(b.f({2, 0}), b.f({2, 0}), {}, b.f({2, 5}));
     }},
    {"ERR_SHAPE", "flow_step: expected v of shape [2, 3]",
     [](const Bench& b) {
       ops::flow_step(b.f({2, 3}), b.f({2, 4}), {}, b.f({2, 5}));
     }},
    {"ERR_SHAPE", "flow_step: expected noise of shape [2, 3]",
     [](const Bench& b) {
       ops::flow_step(b.f({2, 3}), b.f({2, 3}), b.f({2, 2}), b.f({2, 5}));
     }},
    {"ERR_SHAPE", "flow_log_prob: expected coefficients of shape [2, 5]",
     [](const Bench& b) {
       ops::flow_log_prob(b.f({2, 3}), b.f({2, 3}), b.f({2, 3}), b.f({3, 5}));
     }},
    {"ERR_SHAPE", "flow_log_prob: expected a next",
     [](const Bench& b) {
       ops::flow_log_prob(b.f({2, 3}), b.f({2, 3}), {}, b.f({2, 5}));
     }},
    {"ERR_DTYPE", "flow_step: expected x in f32, got bf16",
     [](const Bench& b) {
       ops::flow_step(b.stored({2, 3}), b.f({2, 3}), {}, b.f({2, 5}));
     }},
};

const Refusal kUpdates[] = {
    {"ERR_SHAPE", "adamw_: expected a step of 1 or more",
     [](const Bench& b) { ops::adamw_(b.f({2}), b.f({2}), b.f({2}), b.f({2}), b.f({2}), {.step = 0}); }},
    {"ERR_SHAPE", "adamw_",
     [](const Bench& b) { ops::adamw_(b.f({2}), b.f({3}), b.f({2}), b.f({2}), b.f({2}), {}); }},
    {"ERR_DTYPE", "adamw_: expected master, m, v and gradient contiguous in f32, got bf16",
     [](const Bench& b) { ops::adamw_(b.f({2}), b.f({2}), b.f({2}), b.f({2}), b.stored({2}), {}); }},
    {"ERR_SHAPE", "copy_", [](const Bench& b) { ops::copy_(b.f({2}), b.f({3})); }},
    {"ERR_DTYPE", "copy_", [](const Bench& b) { ops::copy_(b.f({2}), b.whole({2})); }},
    {"ERR_DTYPE", "add_", [](const Bench& b) { ops::add_(b.stored({2}), b.f({2})); }},
    {"ERR_SHAPE", "lerp_", [](const Bench& b) { ops::lerp_(b.f({2}), b.f({3}), 0.5); }},
};

void check(const Bench& bench, const Refusal& row) {
  try {
    row.call(bench);
  } catch (const Error& error) {
    const std::string message = error.what();
    const bool one_line = message.find('\n') == std::string::npos;
    if (error.code == row.code && message.find(row.words) != std::string::npos && one_line) return;
    fail_at(__FILE__, __LINE__, "expected ", row.code, " \"", row.words, "\", got ", error.code, " \"",
            message, '"');
  }
  fail_at(__FILE__, __LINE__, "expected ", row.code, " \"", row.words, "\", got no error");
}

}  // namespace

TEST("ops: what is refused is told in one line") {
  const Bench bench;
  for (const Refusal& row : kMovesAndMaps) check(bench, row);
  for (const Refusal& row : kLayers) check(bench, row);
  for (const Refusal& row : kFlow) check(bench, row);
  for (const Refusal& row : kUpdates) check(bench, row);
}

TEST("ops: a stopped job enters no op") {
  const Bench bench;
  const Tensor x = bench.f({2, 2});
  const std::atomic<bool> stopped{true};
  const CancelScope scope(&stopped);
  CHECK_THROWS("ERR_ABORTED", ops::silu(x));
  CHECK_THROWS("ERR_ABORTED", ops::matmul(x, x));
  CHECK_THROWS("ERR_ABORTED", ops::reshape(x, {4}));
  CHECK_THROWS("ERR_ABORTED", ops::fill_(x, 0));
  CHECK_THROWS("ERR_ABORTED", ops::full(*bench.device, {2}, 0));
  CHECK_THROWS("ERR_ABORTED", ops::to_host(x));
}

TEST("ops: sums_of_squares_ of equal parts") {
  const Bench bench;
  Backend& device = *bench.device;
  const Tensor x = ops::from_host(device, {2, 3}, std::vector<float>{1, 2, 3, 4, 5, 6});
  const Tensor out = device.empty({3});
  ops::sums_of_squares_(out, x);
  CHECK(ops::to_host(out) == (std::vector<float>{5, 25, 61}));
  CHECK_THROWS("ERR_SHAPE", ops::sums_of_squares_(device.empty({4}), x));
  CHECK_THROWS("ERR_SHAPE", ops::sums_of_squares_(device.empty({0}), x));
  CHECK_THROWS("ERR_DTYPE", ops::sums_of_squares_(out, x.transpose(0, 1)));
  CHECK_THROWS("ERR_DTYPE", ops::sums_of_squares_(out, ops::cast(x, DType::bf16)));
}

TEST("ops: sum_of_squares over tensors of any shape") {
  const Bench bench;
  const std::vector<Tensor> tensors = {ops::full(*bench.device, {3, 4}, 2), ops::full(*bench.device, {5}, 1),
                                       ops::transpose(ops::full(*bench.device, {2, 3}, 3), 0, 1),
                                       ops::full(*bench.device, {0, 4}, 7),
                                       ops::full(*bench.device, {}, 0.5f)};
  CHECK_NEAR(ops::sum_of_squares(tensors), 48 + 5 + 54 + 0.25, 1e-12);
  CHECK_EQ(ops::sum_of_squares({}), 0.0);
}

TEST("ops: to_host brings any strides and dtype as f32") {
  const Bench bench;
  const std::vector<float> numbers = {1, 2, 3, 4, 5, 6};
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const Tensor x = ops::from_host(*bench.device, {2, 3}, numbers, dtype);
    CHECK(ops::to_host(x) == numbers);
    CHECK(ops::to_host(x.transpose(0, 1)) == (std::vector<float>{1, 4, 2, 5, 3, 6}));
  }
}

}  // namespace danceflux::test
