// Attention by the CUDA backend's own tensor-core kernels, forward and backward, on an emulated device: what
// the op table does not ask, because cuDNN takes most of its rows.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cuda/emulated_cuda.h"
#include "harness.h"
#include "op_readers.h"
#include "op_rows.h"
#include "wrapped_backend.h"

namespace danceflux::test {
namespace {

std::shared_ptr<Backend> open_own() { return open_emulated_cuda(R"({"attention": "own"})"); }

/// Every width, lengths that are and are not multiples of a tile (16, 32, 64) or a block (64, 128), more
/// queries than keys and fewer.
struct Lengths {
  std::int64_t queries, keys, heads, width;
};
constexpr Lengths kLengths[] = {{64, 64, 1, 32},   {77, 131, 2, 32}, {70, 130, 1, 64},  {129, 65, 2, 64},
                                {131, 67, 1, 80},  {1, 50, 2, 80},   {128, 64, 1, 128}, {33, 161, 1, 128},
                                {145, 70, 2, 128}, {40, 1, 1, 128}};

/// A call of attention and its gradients, without a tape between: each tensor lies as the test wants it.
struct Call {
  Tensor q, k, v, bias, dout;
  AttentionArgs args{.scale = 0.25f};

  Call image(std::int64_t b) const {
    const auto one = [b](const Tensor& x) { return x && x.dim(0) > 1 ? x.narrow(0, b, 1) : x; };
    return {one(q), one(k), one(v), one(bias), one(dout), args};
  }
};
struct Answer {
  std::vector<Tensor> all;          // out, lse, dq, dk, dv
  std::uint64_t forward, backward;  // products of tensor cores
};

Answer answer(Backend& device, const Call& call) {
  const auto like = [&](const Tensor& x) { return device.empty(x.shape(), x.dtype()); };
  const Tensor out = like(call.q), lse = device.empty({call.q.dim(0), call.q.dim(2), call.q.dim(1)}),
               dq = like(call.q), dk = like(call.k), dv = like(call.v);
  const std::uint64_t start = emulated_products();
  CHECK(!device.attention(out, lse, call.q, call.k, call.v, call.bias, call.args));
  const std::uint64_t middle = emulated_products();
  CHECK(!device.attention_backward(dq, dk, dv, call.dout, out, lse, call.q, call.k, call.v, call.bias,
                                   call.args));
  return {{out, lse, dq, dk, dv}, middle - start, emulated_products() - middle};
}

Tensor numbers(Backend& device, const Shape& shape, const std::string& seed) {
  return ops::from_host(device, shape, normal_stream(seed, shape.numel()), DType::bf16);
}
Call normal_call(Backend& device, std::int64_t B, const Lengths& size) {
  const Shape queries{B, size.queries, size.heads, size.width}, keys{B, size.keys, size.heads, size.width};
  return {numbers(device, queries, "q"),
          numbers(device, keys, "k"),
          numbers(device, keys, "v"),
          {},
          numbers(device, queries, "dout")};
}

bool same_bits(const Tensor& a, const Tensor& b) { return ops::to_host(a) == ops::to_host(b); }

double distance(const Tensor& got, const Tensor& wanted) {
  return error_of(values_of(got), values_of(wanted));
}

/// One head's gradients in double, and how far bf16 may take each number from them.
///
/// q, k, v, dout and the bias are exact. Rounded, each to within u = 2^-8 of itself, are: every probability
/// (in the forward, and before it is summed up for dv), the output that delta is made of, every dS, and the
/// result. These roundings are independent of each other, so what they do to a sum is the root of the sum of
/// their squares. u is a bound and not a standard deviation, which is 0.4 u: 2.5 u are six of those.
struct Head {
  std::vector<double> dq, dk, dv, dq_error, dk_error, dv_error;
};

struct Column {  // [L, K] of one image and head
  std::vector<double> values;
  std::int64_t width;
  Column(const Tensor& x, std::int64_t b, std::int64_t h)
      : values(values_of(x.narrow(0, b, 1).narrow(2, h, 1))), width(x.dim(3)) {}
  double operator()(std::int64_t i, std::int64_t d) const {
    return values[static_cast<std::size_t>(i * width + d)];
  }
};

/// value += term, and the square of what its rounding may add.
void add(double& value, double& square, double term) {
  value += term;
  square += term * term;
}

Head head_in_double(const Call& call, std::int64_t b, std::int64_t h) {
  const std::int64_t Lq = call.q.dim(1), Lk = call.k.dim(1), K = call.q.dim(3);
  const Column q(call.q, b, h), k(call.k, b, h), v(call.v, b, h), dout(call.dout, b, h);
  const std::vector<double> bias =
      call.bias ? values_of(call.bias.narrow(0, call.bias.dim(0) > 1 ? b : 0, 1).narrow(1, h, 1))
                : std::vector<double>(static_cast<std::size_t>(Lq * Lk));
  const auto queries = static_cast<std::size_t>(Lq * K), keys = static_cast<std::size_t>(Lk * K);
  Head head{std::vector<double>(queries), std::vector<double>(keys), std::vector<double>(keys),
            std::vector<double>(queries), std::vector<double>(keys), std::vector<double>(keys)};
  const double scale = static_cast<double>(call.args.scale);
  for (std::int64_t i = 0; i < Lq; ++i) {
    const std::int64_t seen = call.args.causal ? std::min(i + 1, Lk) : Lk;
    std::vector<double> p(static_cast<std::size_t>(seen)), dp(p.size());
    double sum = 0, delta = 0, delta_square = 0;
    for (std::int64_t j = 0; j < seen; ++j) {
      const auto at = static_cast<std::size_t>(j);
      for (std::int64_t d = 0; d < K; ++d) {
        p[at] += q(i, d) * k(j, d) * scale;
        dp[at] += dout(i, d) * v(j, d);
      }
      sum += p[at] = std::exp(p[at] + bias[static_cast<std::size_t>(i * Lk + j)]);
    }
    for (double& each : p) each /= sum;
    for (std::int64_t d = 0; d < K; ++d) {
      double out = 0, square = 0;
      for (std::int64_t j = 0; j < seen; ++j) add(out, square, p[static_cast<std::size_t>(j)] * v(j, d));
      delta += dout(i, d) * out;
      delta_square += dout(i, d) * dout(i, d) * (out * out + square);
    }
    for (std::int64_t d = 0; d < K; ++d) {
      const auto to = static_cast<std::size_t>(i * K + d);
      double mean_key = 0;  // what an error of delta is multiplied with
      for (std::int64_t j = 0; j < seen; ++j) {
        const auto at = static_cast<std::size_t>(j), key = static_cast<std::size_t>(j * K + d);
        const double ds = p[at] * (dp[at] - delta) * scale;
        add(head.dq[to], head.dq_error[to], ds * k(j, d));
        mean_key += p[at] * scale * k(j, d);
        add(head.dk[key], head.dk_error[key], ds * q(i, d));
        head.dk_error[key] += p[at] * p[at] * scale * scale * delta_square * q(i, d) * q(i, d);
        add(head.dv[key], head.dv_error[key], p[at] * dout(i, d));
      }
      head.dq_error[to] += mean_key * mean_key * delta_square;
    }
  }
  return head;
}

void compare(Complaints& complaints, const std::string& what, const Tensor& got, std::int64_t b,
             std::int64_t h, const std::vector<double>& wanted, const std::vector<double>& squares) {
  const Column rows(got, b, h);
  double worst = 0;
  for (std::size_t n = 0; n < wanted.size(); ++n) {
    // sums in f32 are far better than u
    const double one = 0x1p-8 * std::sqrt(squares[n] + wanted[n] * wanted[n]) + 1e-6;
    const double error = std::abs(rows.values[n] - wanted[n]) / one;
    worst = error <= worst ? worst : error;  // also when it is NaN
  }
  if (!(worst <= 2.5)) complaints.add(what, ": expected an error of 2.5 roundings or less, got ", worst);
}

}  // namespace

TEST("cuda attention: own tensor-core gradients are off by the roundings of bf16 and no more") {
  const auto device = open_own();
  Complaints complaints;
  for (const Lengths& size : kLengths)
    for (const bool causal : {false, true})
      for (const std::int64_t bias : {0, 1, 2}) {
        Call call = normal_call(*device, 2, size);
        call.args.causal = causal;
        if (bias) call.bias = numbers(*device, {bias, size.heads, size.queries, size.keys}, "bias");
        const Answer got = answer(*device, call);
        const std::string name =
            label("attention", call.q.shape(), size.keys, "keys", causal ? "causal" : "", "bias", bias);
        if (got.forward == 0 || got.backward == 0)
          complaints.add(name, ": expected products of tensor cores");
        for (std::int64_t b = 0; b < 2; ++b) {
          const std::int64_t h = size.heads - 1;
          const Head wanted = head_in_double(call, b, h);
          compare(complaints, name + ", dq", got.all[2], b, h, wanted.dq, wanted.dq_error);
          compare(complaints, name + ", dk", got.all[3], b, h, wanted.dk, wanted.dk_error);
          compare(complaints, name + ", dv", got.all[4], b, h, wanted.dv, wanted.dv_error);
        }
      }
  complaints.finish();
}

TEST("cuda attention: own kernels stay in their tensors and read only what was written") {
  const auto inner = open_own();
  const auto device = std::make_shared<WrappedBackend>(inner, true);
  for (const auto& [queries, keys, heads, width] : kLengths) {
    OpCase row = attention_row(2, queries, keys, heads, width, 0, false);
    row.activations = DType::bf16;
    if (gradient_values(*device, row) != gradient_values(*inner, row) || device->overruns)
      fail_at(__FILE__, __LINE__, row.name, ": expected the same bits in memory of NaN and whole guards");
  }
}

TEST("cuda attention: an image's gradients are the same bits alone, in a batch, and again") {
  const auto device = open_own();
  for (const std::int64_t width : {32, 64, 80, 128})
    for (const bool causal : {false, true}) {
      Call call = normal_call(*device, 3, {75, 91, 2, width});
      call.args.causal = causal;
      call.bias = numbers(*device, {3, 2, 75, 91}, "bias");
      const Answer together = answer(*device, call), again = answer(*device, call);
      for (std::size_t n = 0; n < together.all.size(); ++n) {
        CHECK(same_bits(together.all[n], again.all[n]));
        for (std::int64_t b = 0; b < 3; ++b)
          CHECK(same_bits(together.all[n].narrow(0, b, 1), answer(*device, call.image(b)).all[n]));
      }
    }
}

TEST("cuda attention: tensor cores take what lies in packs of 16 bytes, plain kernels the rest") {
  const auto device = open_own();
  for (const std::int64_t width : {32, 64, 80, 128}) {
    const Call call = normal_call(*device, 1, {40, 50, 2, width});
    const Answer packed = answer(*device, call);
    CHECK(packed.forward > 0 && packed.backward > 2 * packed.forward);
    // Each tensor in turn with heads two elements apart, or begun two elements late.
    for (Tensor Call::*each : {&Call::q, &Call::k, &Call::v, &Call::dout})
      for (const std::int64_t begin : {0, 2}) {
        Call odd = call;
        const Tensor& x = call.*each;
        const Tensor wide =
            device->empty({x.dim(0), x.dim(1), x.dim(2), begin ? width + 8 : width + 2}, DType::bf16);
        odd.*each = wide.narrow(3, begin, width);
        device->copy(odd.*each, x);
        const Answer plain = answer(*device, odd);
        CHECK_EQ(plain.backward, 0u);
        CHECK_EQ(plain.forward == 0, each != &Call::dout);
        for (std::size_t n = 0; n < plain.all.size(); ++n)
          CHECK(distance(packed.all[n], plain.all[n]) <= 0x1p-5);  // as two devices
      }
  }
  const Answer other = answer(*device, normal_call(*device, 1, {40, 50, 2, 48}));
  CHECK_EQ(other.forward + other.backward, 0u);
}

TEST("cuda attention: one projection, seen by head, and strided gradients go through tensor cores") {
  const auto device = open_own();
  const Call dense = normal_call(*device, 2, {50, 50, 3, 64});
  const Answer wanted = answer(*device, dense);
  const Tensor whole = device->empty({2, 50, 9, 64}, DType::bf16),
               gradients = device->empty({2, 50, 9, 64}, DType::bf16);
  Call call = dense;
  std::int64_t at = 0;
  for (Tensor Call::*each : {&Call::q, &Call::k, &Call::v}) {
    call.*each = whole.narrow(2, at, 3);
    device->copy(call.*each, dense.*each);
    at += 3;
  }
  const Answer forward = answer(*device, call);
  const Tensor dq = gradients.narrow(2, 0, 3), dk = gradients.narrow(2, 3, 3), dv = gradients.narrow(2, 6, 3);
  const std::uint64_t before = emulated_products();
  CHECK(!device->attention_backward(dq, dk, dv, call.dout, forward.all[0], forward.all[1], call.q, call.k,
                                    call.v, {}, call.args));
  CHECK_EQ(emulated_products() - before, wanted.backward);
  for (const auto& [got, n] : {std::pair{dq, 2}, {dk, 3}, {dv, 4}})
    CHECK(same_bits(got, wanted.all[static_cast<std::size_t>(n)]));
}

TEST("cuda attention: causal work is left out where no query sees a key") {
  const auto device = open_own();
  Call call = normal_call(*device, 1, {256, 256, 1, 64});
  const Answer whole = answer(*device, call);
  call.args.causal = true;
  const Answer causal = answer(*device, call);
  CHECK(causal.forward < whole.forward * 3 / 4);
  CHECK(causal.backward < whole.backward * 3 / 4);
}

TEST("cuda attention: a query without any key has no output and gives no gradient") {
  const auto device = open_own();
  for (const std::int64_t width : {64, 128}) {
    Call call = normal_call(*device, 1, {70, 90, 1, width});
    std::vector<float> bias(70 * 90), dout = ops::to_host(call.dout);
    for (std::size_t i : {3, 69}) {
      std::fill_n(bias.begin() + static_cast<std::ptrdiff_t>(i * 90), 90,
                  -std::numeric_limits<float>::infinity());
    }
    call.bias = ops::from_host(*device, {1, 1, 70, 90}, bias, DType::bf16);
    const Answer masked = answer(*device, call);
    CHECK(masked.backward > 0);
    // The same without a mask, where nothing flows into those queries: equal but for their own outputs.
    for (std::size_t i : {3, 69})
      std::fill_n(dout.begin() + static_cast<std::ptrdiff_t>(i) * width, width, 0.0f);
    call.bias = {};
    call.dout = ops::from_host(*device, call.dout.shape(), dout, DType::bf16);
    const Answer silent = answer(*device, call);
    for (std::size_t n : {2, 3, 4}) CHECK(same_bits(masked.all[n], silent.all[n]));
    for (std::size_t i : {3, 69}) {
      CHECK_EQ(ops::to_host(masked.all[1])[i], -std::numeric_limits<float>::infinity());
      for (const float value : ops::to_host(masked.all[0].narrow(1, static_cast<std::int64_t>(i), 1)))
        CHECK_EQ(value, 0.0f);
    }
  }
}

TEST("cuda attention: cuDNN takes it where nothing else is said") {
  const auto usual = open_emulated_cuda();
  const Answer by_library = answer(*usual, normal_call(*usual, 1, {40, 50, 2, 64}));
  CHECK_EQ(by_library.forward + by_library.backward, 0u);
}

TEST("cuda attention: wide heads in pieces of their queries, an image's bits its own") {
  const auto device = open_own();
  const Shape queries{2, 1100, 1, 512}, keys{2, 70, 1, 512};
  const Tensor q = numbers(*device, queries, "q"), k = numbers(*device, keys, "k"),
               v = numbers(*device, keys, "v");
  const AttentionArgs args{.scale = 0.05f};
  const Tensor out = ops::attention(q, k, v, {}, args);
  const auto values = [](const Tensor& x) {
    const auto all = ops::to_host(x);
    return std::vector<double>(all.begin(), all.end());
  };
  const double error = error_of(values(out), values(ops::composed::attention(q, k, v, {}, args)));
  CHECK(error <= forward_tolerance(Family::attention, DType::bf16) + rounding_of(DType::bf16));
  const auto second = [](const Tensor& x) { return x.narrow(0, 1, 1); };
  const Tensor alone = ops::attention(second(q), second(k), second(v), {}, args);
  CHECK(ops::to_host(alone) == ops::to_host(ops::contiguous(second(out))));
}

}  // namespace danceflux::test
