// Attention and its gradients against plain loops in double.
#include "cpu_test_tools.h"

namespace danceflux::test {
namespace {

struct AttentionCase {
  std::int64_t batch, heads, queries, keys, width;
  bool causal = false;
  int bias_batch = 0;  // 0: none
};

const AttentionCase kCases[] = {
    {2, 3, 28, 28, 32},
    {1, 2, 1, 1, 8},
    {1, 1, 5, 7, 9},
    {2, 2, 100, 70, 40, false, 2},
    {1, 2, 300, 530, 64},
    {2, 2, 77, 77, 64, true},
    {1, 1, 130, 260, 17, false, 1},
    {1, 1, 270, 290, 512},
    {1, 2, 300, 300, 24, true, 1},
    {1, 3, 50, 600, 128},
    {1, 1, 3, 0, 8},
    {1, 1, 0, 3, 8},
    {2, 2, 40, 10, 16, true},
};

struct Heads {
  Tensor q, k, v, dout, bias, out, lse, dq, dk, dv;
  AttentionArgs args;

  Heads(Backend& backend, const AttentionCase& c) {
    // q, k and v as a joint projection leaves them: [B, L, 3, H, K]
    const auto third = [&](std::int64_t tokens, std::int64_t which, std::uint64_t seed) {
      return random_tensor(backend, {c.batch, tokens, 3, c.heads, c.width}, seed)
          .narrow(2, which, 1)
          .view({c.batch, tokens, c.heads, c.width});
    };
    q = third(c.queries, 0, 1), k = third(c.keys, 1, 2), v = third(c.keys, 2, 3);
    dout = random_tensor(backend, {c.batch, c.queries, c.heads, c.width}, 4);
    if (c.bias_batch) bias = random_tensor(backend, {c.bias_batch, c.heads, c.queries, c.keys}, 5);
    out = backend.empty(q.shape()), lse = backend.empty({c.batch, c.heads, c.queries});
    dq = backend.empty(q.shape()), dk = backend.empty(k.shape()), dv = backend.empty(k.shape());
    args = {3.0f / std::sqrt(static_cast<float>(c.width)), c.causal};
  }
  void run(Backend& backend) const {
    CHECK(backend.taken("attention", backend.attention(out, lse, q, k, v, bias, args)));
    CHECK(backend.taken("attention_backward",
                        backend.attention_backward(dq, dk, dv, dout, out, lse, q, k, v, bias, args)));
  }
};

// Sums and the sums of their absolute terms, which is what rounding errors are measured by.
struct Sums {
  std::vector<double> values, sizes;
  explicit Sums(const Tensor& like) : values(static_cast<std::size_t>(like.numel())), sizes(values.size()) {}
  void add(std::int64_t at, double term) {
    values[static_cast<std::size_t>(at)] += term;
    sizes[static_cast<std::size_t>(at)] += std::abs(term);
  }
  void check(Backend& backend, const Tensor& got, const char* name, const std::string& what) const {
    const std::vector<float> found = values_of(backend, got);
    for (std::size_t i = 0; i < values.size(); ++i)
      if (!(std::abs(found[i] - values[i]) <= 2e-6 * sizes[i] + 1e-7))
        fail_at(__FILE__, __LINE__, what, " ", name, " at ", i, ": expected ", values[i], ", got ", found[i]);
  }
};

struct Oracle {
  const Heads& h;
  Sums out, dq, dk, dv;
  std::vector<double> lse;
  explicit Oracle(const Heads& heads) : h(heads), out(h.q), dq(h.q), dk(h.k), dv(h.v) {}

  // q . k and the like
  static double dot(const Tensor& a, std::int64_t b, std::int64_t i, std::int64_t head, const Tensor& c,
                    std::int64_t j) {
    const float *x = a.data<float>() + offset_of(a, {b, i, head, 0}),
                *y = c.data<float>() + offset_of(c, {b, j, head, 0});
    double sum = 0;
    for (std::int64_t n = 0; n < a.dim(3); ++n) sum += double{x[n]} * double{y[n]};
    return sum;
  }

  void row(std::int64_t b, std::int64_t head, std::int64_t i) {
    const std::int64_t keys = h.k.dim(1), width = h.q.dim(3), heads = h.q.dim(2);
    const std::int64_t visible = h.args.causal ? std::min(keys, i + 1) : keys;
    std::vector<double> p(static_cast<std::size_t>(visible));
    double highest = -INFINITY, total = 0;
    for (std::int64_t j = 0; j < visible; ++j) {
      p[static_cast<std::size_t>(j)] =
          h.args.scale * dot(h.q, b, i, head, h.k, j) +
          (h.bias.defined() ? element(h.bias, {h.bias.dim(0) == 1 ? 0 : b, head, i, j}) : 0);
      highest = std::max(highest, p[static_cast<std::size_t>(j)]);
    }
    for (double& weight : p) total += weight = highest == -INFINITY ? 0 : std::exp(weight - highest);
    lse.push_back(total > 0 ? highest + std::log(total) : -INFINITY);
    double delta = 0;
    for (std::int64_t j = 0; j < visible; ++j) {
      if (total > 0) p[static_cast<std::size_t>(j)] /= total;
      delta += p[static_cast<std::size_t>(j)] * dot(h.dout, b, i, head, h.v, j);
    }
    const std::int64_t q_at = ((b * h.q.dim(1) + i) * heads + head) * width;
    for (std::int64_t j = 0; j < visible; ++j) {
      const double weight = p[static_cast<std::size_t>(j)],
                   slope = h.args.scale * weight * (dot(h.dout, b, i, head, h.v, j) - delta);
      const std::int64_t k_at = ((b * keys + j) * heads + head) * width;
      const float *q = h.q.data<float>() + offset_of(h.q, {b, i, head, 0}),
                  *k = h.k.data<float>() + offset_of(h.k, {b, j, head, 0});
      const float *v = h.v.data<float>() + offset_of(h.v, {b, j, head, 0}),
                  *g = h.dout.data<float>() + offset_of(h.dout, {b, i, head, 0});
      // the size of a slope's error is that of the numbers it is the difference of
      const double slope_size = h.args.scale * weight * std::sqrt(static_cast<double>(width));
      for (std::int64_t n = 0; n < width; ++n) {
        out.add(q_at + n, weight * v[n]);
        dv.add(k_at + n, weight * g[n]);
        dq.add(q_at + n, slope * k[n]);
        dk.add(k_at + n, slope * q[n]);
        dq.sizes[static_cast<std::size_t>(q_at + n)] += slope_size;
        dk.sizes[static_cast<std::size_t>(k_at + n)] += slope_size;
      }
    }
  }

  void check(Backend& backend, const std::string& what) {
    for (std::int64_t b = 0; b < h.q.dim(0); ++b)
      for (std::int64_t head = 0; head < h.q.dim(2); ++head)
        for (std::int64_t i = 0; i < h.q.dim(1); ++i) row(b, head, i);
    out.check(backend, h.out, "out", what);
    dq.check(backend, h.dq, "dq", what);
    dk.check(backend, h.dk, "dk", what);
    dv.check(backend, h.dv, "dv", what);
    const std::vector<float> found = values_of(backend, h.lse);
    for (std::size_t i = 0; i < lse.size(); ++i)
      if (std::isinf(lse[i]))
        CHECK_EQ(found[i], -INFINITY);
      else
        CHECK_NEAR(found[i], lse[i], 3e-6 * (1 + std::abs(lse[i])));
  }
};

std::vector<std::vector<float>> all_of(Backend& backend, const Heads& h) {
  std::vector<std::vector<float>> all;
  for (const Tensor* tensor : {&h.out, &h.lse, &h.dq, &h.dk, &h.dv})
    all.push_back(values_of(backend, *tensor));
  return all;
}

}  // namespace

TEST("attention: forward and gradients, odd sizes, bias, causal") {
  for (const std::string& isa : isas()) {
    const auto backend = cpu_backend(isa);
    backend->strict_shortcuts = true;
    int number = 0;
    for (const AttentionCase& c : kCases) {
      const Heads heads(*backend, c);
      heads.run(*backend);
      Oracle(heads).check(*backend, isa + " case " + std::to_string(number++));
    }
  }
}

TEST("attention: rows masked by the bias, wholly and in part") {
  for (const std::string& isa : isas()) {
    const auto backend = cpu_backend(isa);
    backend->strict_shortcuts = true;
    Heads heads(*backend, {1, 2, 60, 300, 16, false, 1});
    for (std::int64_t head = 0; head < 2; ++head)
      for (std::int64_t i = 0; i < 60; ++i)
        for (std::int64_t j = 0; j < 300; ++j)
          if (i == 7 || (i == 9 && j < 290) || (i % 4 == 1 && j % 3))
            heads.bias.data<float>()[(head * 60 + i) * 300 + j] = -INFINITY;
    heads.run(*backend);
    Oracle(heads).check(*backend, isa + " masked");
    for (std::int64_t n = 0; n < 16; ++n) CHECK_EQ(element(heads.out, {0, 7, 1, n}), 0.0);
  }
}

TEST("attention: large scores do not overflow") {
  for (const std::string& isa : isas()) {
    const auto backend = cpu_backend(isa);
    Heads heads(*backend, {1, 1, 70, 520, 32});
    heads.args.scale = 200;
    heads.run(*backend);
    for (float value : values_of(*backend, heads.out)) CHECK(std::abs(value) <= 1.0f);
    for (float value : values_of(*backend, heads.lse)) CHECK(std::isfinite(value) && value > 100);
  }
}

TEST("attention: views with zero strides and turned bias") {
  const auto backend = cpu_backend();
  backend->strict_shortcuts = true;
  Heads heads(*backend, {2, 3, 20, 33, 16});
  heads.k = heads.k.narrow(2, 0, 1).expand(heads.k.shape());
  heads.bias = random_tensor(*backend, {1, 1, 33, 20}, 9).transpose(2, 3).expand({2, 3, 20, 33});
  heads.run(*backend);
  Oracle oracle(heads);
  oracle.check(*backend, "views");
}

TEST("attention: the same bits for every thread count and batch size") {
  for (const std::string& isa : isas())
    for (const AttentionCase& c : {AttentionCase{3, 1, 600, 530, 40}, AttentionCase{3, 2, 28, 28, 32},
                                   AttentionCase{1, 1, 500, 500, 64, true}}) {
      std::vector<std::vector<float>> first;
      for (int threads : {1, 2, 3, 4}) {
        const auto backend = cpu_backend(isa, threads);
        const Heads heads(*backend, c);
        heads.run(*backend);
        const auto all = all_of(*backend, heads);
        if (threads == 1) first = all;
        for (std::size_t i = 0; i < all.size(); ++i) CHECK(same_bits(all[i], first[i]));
        for (std::int64_t b = 0; b < c.batch; ++b) {
          AttentionCase alone = c;
          alone.batch = 1;
          Heads one(*backend, alone);
          const auto part = [&](const Tensor& t) { return t.narrow(0, b, 1); };
          one.q = part(heads.q), one.k = part(heads.k), one.v = part(heads.v), one.dout = part(heads.dout);
          one.run(*backend);
          const auto single = all_of(*backend, one);
          for (std::size_t i = 0; i < all.size(); ++i)
            CHECK(same_bits(single[i].data(), all[i].data() + static_cast<std::size_t>(b) * single[i].size(),
                            static_cast<std::int64_t>(single[i].size())));
        }
      }
    }
}

TEST("attention: a query's bits depend on that query alone") {
  for (const std::string& isa : isas()) {
    const auto backend = cpu_backend(isa);
    const Heads all(*backend, {1, 2, 310, 530, 40});
    all.run(*backend);
    for (std::int64_t start : {0, 1, 49, 200})
      for (std::int64_t count : {1, 13, 100}) {
        const Tensor out = backend->empty({1, count, 2, 40}), lse = backend->empty({1, 2, count});
        CHECK(!backend->attention(out, lse, all.q.narrow(1, start, count), all.k, all.v, {}, all.args));
        CHECK(same_bits(out.data<float>(), all.out.data<float>() + start * 80, count * 80));
      }
  }
}

TEST("attention: declines what it cannot read, and says why") {
  const auto backend = cpu_backend();
  Heads heads(*backend, {1, 2, 4, 4, 8});
  const Tensor turned = random_tensor(*backend, {1, 4, 8, 2}, 1).transpose(2, 3);
  CHECK_EQ(*backend->attention(heads.out, heads.lse, turned, heads.k, heads.v, {}, {}),
           std::string("the elements of a head are not dense"));
}

}  // namespace danceflux::test
