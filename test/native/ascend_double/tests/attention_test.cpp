// Attention, rotary embedding, convolution, resampling: against plain loops in double.
#include <cmath>

#include "tools.h"

using namespace double_test;

namespace {

using Values = std::vector<double>;
constexpr const aclTensor* kNone = nullptr;
constexpr const aclIntArray* kNoInts = nullptr;

void check_close(const Values& got, const Values& wanted, double most, const char* what) {
  if (!(worst(got, wanted) <= most))
    danceflux::test::fail_at(__FILE__, __LINE__, what, " differs by ", worst(got, wanted));
}

struct Attention {
  std::int64_t batch = 2, heads = 2, queries = 5, keys = 7, width = 4;
  double scale = 0.5;
  bool causal = false, biased = false, bias_scaled = true;
  Values q, k, v, bias;

  /// The output [B, S, N, D] for inputs in that order; the statistics on request.
  Values forward(const Values& aq, const Values& ak, const Values& av, Values* tops = nullptr,
                 Values* totals = nullptr) const {
    Values result(static_cast<std::size_t>(batch * queries * heads * width));
    for (int b = 0; b < batch; ++b)
      for (int h = 0; h < heads; ++h)
        for (int i = 0; i < queries; ++i) {
          Values scores;
          double top = -INFINITY, total = 0;
          for (int j = 0; j < keys; ++j) {
            double score = 0;
            for (int d = 0; d < width; ++d) score += aq[at(b, i, h, d, queries)] * ak[at(b, j, h, d, keys)];
            const double shift = biased ? bias[(h * queries + i) * keys + j] : 0;
            score = bias_scaled ? scale * (score + shift) : scale * score + shift;
            scores.push_back(causal && j > i ? -INFINITY : score);
            top = std::max(top, scores.back());
          }
          for (double& score : scores) total += score = std::exp(score - top);
          for (int j = 0; j < keys; ++j)
            for (int d = 0; d < width; ++d)
              result[at(b, i, h, d, queries)] += scores[j] / total * av[at(b, j, h, d, keys)];
          if (tops) tops->insert(tops->end(), 8, top);
          if (totals) totals->insert(totals->end(), 8, total);
        }
    return result;
  }
  std::size_t at(std::int64_t b, std::int64_t s, std::int64_t h, std::int64_t d, std::int64_t length) const {
    return static_cast<std::size_t>(((b * length + s) * heads + h) * width + d);
  }
  void fill() {
    q = numbers(batch * queries * heads * width, 1);
    k = numbers(batch * keys * heads * width, 2);
    v = numbers(batch * keys * heads * width, 3);
    bias = numbers(heads * queries * keys, 4);
  }
};

Values slope_by_differences(const Values& x, const std::function<double(const Values&)>& loss) {
  Values slopes;
  for (std::size_t i = 0; i < x.size(); ++i) {
    Values up = x, down = x;
    up[i] += 1e-5;
    down[i] -= 1e-5;
    slopes.push_back((loss(up) - loss(down)) / 2e-5);
  }
  return slopes;
}

double dot(const Values& a, const Values& b) {
  double total = 0;
  for (std::size_t i = 0; i < a.size(); ++i) total += a[i] * b[i];
  return total;
}

constexpr std::int64_t kFar = 2147483647, kZero = 0;

}  // namespace

TEST("flash attention: bias, causal mask, statistics, gradients") {
  Session session;
  for (const bool causal : {false, true})
    for (const bool biased : {false, true})
      for (const std::int64_t pse_type : {0, 1}) {
        Attention a;
        a.causal = causal;
        a.biased = biased;
        a.bias_scaled = pse_type == 1;
        a.fill();
        Array q({a.batch, a.queries, a.heads, a.width}, a.q), k({a.batch, a.keys, a.heads, a.width}, a.k);
        Array v({a.batch, a.keys, a.heads, a.width}, a.v), y({a.batch, a.queries, a.heads, a.width});
        Array bias({1, a.heads, a.queries, a.keys}, a.bias), none({0});
        Values masked;
        for (int i = 0; i < a.queries; ++i)
          for (int j = 0; j < a.keys; ++j) masked.push_back(j > i);  // true is masked out
        Array mask({a.queries, a.keys}, masked, ACL_BOOL);
        Array top({a.batch, a.heads, a.queries, 8}), total({a.batch, a.heads, a.queries, 8});
        const aclTensor *given_bias = biased ? in(bias) : kNone, *given_mask = causal ? in(mask) : kNone;
        run(session, "FlashAttentionScoreV2", in(q), in(k), in(v), given_bias, kNone, kNone, given_mask,
            kNoInts, kNoInts, kNoInts, a.scale, 1.0, kFar, kFar, a.heads, "BSND", kZero, kZero, pse_type,
            in(top), in(total), in(none), in(y));
        Values tops, totals;
        check_close(y.values(), a.forward(a.q, a.k, a.v, &tops, &totals), 1e-5, "attention");
        check_close(top.values(), tops, 1e-6, "softmaxMax");
        check_close(total.values(), totals, 1e-5, "softmaxSum");
        const Values g = numbers(static_cast<std::int64_t>(a.q.size()), 5);
        Array dy({a.batch, a.queries, a.heads, a.width}, g), dq({a.batch, a.queries, a.heads, a.width});
        Array dk({a.batch, a.keys, a.heads, a.width}), dv({a.batch, a.keys, a.heads, a.width});
        Array dbias({1, a.heads, a.queries, a.keys});
        run(session, "FlashAttentionScoreGradV2", in(q), in(k), in(v), in(dy), given_bias, kNone, kNone,
            given_mask, in(top), in(total), kNone, in(y), kNoInts, kNoInts, kNoInts, a.scale, 1.0, kFar, kFar,
            a.heads, "BSND", kZero, kZero, pse_type, in(dq), in(dk), in(dv), biased ? in(dbias) : in(none));
        check_close(
            dq.values(),
            slope_by_differences(a.q, [&](const Values& x) { return dot(a.forward(x, a.k, a.v), g); }), 1e-4,
            "dq");
        check_close(
            dk.values(),
            slope_by_differences(a.k, [&](const Values& x) { return dot(a.forward(a.q, x, a.v), g); }), 1e-4,
            "dk");
        check_close(
            dv.values(),
            slope_by_differences(a.v, [&](const Values& x) { return dot(a.forward(a.q, a.k, x), g); }), 1e-4,
            "dv");
        if (!biased) continue;
        const auto loss = [&](const Values& x) {
          Attention other = a;
          other.bias = x;
          return dot(other.forward(a.q, a.k, a.v), g);
        };
        check_close(dbias.values(), slope_by_differences(a.bias, loss), 1e-4, "dpse");
      }
}

TEST("flash attention reads every layout alike") {
  Session session;
  Attention a;
  a.keys = a.queries;
  a.fill();
  const std::int64_t h = a.heads * a.width, b = a.batch, s = a.queries;
  const Values wanted = a.forward(a.q, a.k, a.v);
  const auto moved = [&](const Values& x, const char* layout, bool back) {
    Values result(x.size());
    for (int i = 0; i < b; ++i)
      for (int j = 0; j < s; ++j)
        for (int n = 0; n < a.heads; ++n)
          for (int d = 0; d < a.width; ++d) {
            const std::size_t plain = a.at(i, j, n, d, s);
            const std::string name = layout;
            const std::size_t other = name == "BNSD"  ? ((i * a.heads + n) * s + j) * a.width + d
                                      : name == "SBH" ? (j * b + i) * h + n * a.width + d
                                                      : plain;
            back ? result[plain] = x[other] : result[other] = x[plain];
          }
    return result;
  };
  for (const char* layout : {"BSND", "BNSD", "BSH", "SBH"}) {
    const std::string name = layout;
    const Shape shape = name == "BSND"   ? Shape{b, s, a.heads, a.width}
                        : name == "BNSD" ? Shape{b, a.heads, s, a.width}
                        : name == "BSH"  ? Shape{b, s, h}
                                         : Shape{s, b, h};
    Array q(shape, moved(a.q, layout, false)), k(shape, moved(a.k, layout, false)),
        v(shape, moved(a.v, layout, false)), y(shape);
    Array top({b, a.heads, s, 8}), total({b, a.heads, s, 8}), none({0});
    run(session, "FlashAttentionScore", in(q), in(k), in(v), kNone, kNone, kNone, kNone, kNoInts, a.scale,
        1.0, kFar, kFar, a.heads, layout, kZero, kZero, in(top), in(total), in(none), in(y));
    check_close(moved(y.values(), layout, true), wanted, 1e-5, layout);
  }
}

TEST("flash attention refuses what the device does") {
  Session session;
  const auto answer = [&](const Shape& q_shape, int k_type, const Shape& stat, const Shape& mask_shape,
                          std::int64_t heads, const char* layout, int stat_type = ACL_FLOAT) {
    Array q(q_shape), k(q_shape, k_type), top(stat, stat_type), mask(mask_shape, ACL_BOOL), none({0});
    return refusal("FlashAttentionScore", in(q), in(k), in(q), kNone, kNone, kNone, in(mask), kNoInts, 1.0,
                   1.0, kFar, kFar, heads, layout, kZero, kZero, in(top), in(top), in(none), in(q));
  };
  CHECK_EQ(answer({1, 4, 2, 8}, ACL_FLOAT, {1, 2, 4, 8}, {4, 4}, 2, "BSND"), 0);
  CHECK_EQ(answer({1, 4, 2, 8}, ACL_BF16, {1, 2, 4, 8}, {4, 4}, 2, "BSND"), 161002);
  CHECK_EQ(answer({1, 4, 2, 8}, ACL_FLOAT, {1, 2, 4}, {4, 4}, 2, "BSND"), 161002);
  CHECK_EQ(answer({1, 4, 2, 8}, ACL_FLOAT, {1, 2, 4, 8}, {4, 4}, 2, "BSND", ACL_BF16), 161002);
  CHECK_EQ(answer({1, 4, 2, 8}, ACL_FLOAT, {1, 2, 4, 8}, {4, 5}, 2, "BSND"), 161002);
  CHECK_EQ(answer({1, 4, 2, 8}, ACL_FLOAT, {1, 2, 4, 8}, {4, 4}, 4, "BSND"), 161002);
  CHECK_EQ(answer({1, 4, 2, 8}, ACL_FLOAT, {1, 2, 4, 8}, {4, 4}, 2, "BSDN"), 161002);
  CHECK_EQ(answer({1, 4, 2, 516}, ACL_FLOAT, {1, 2, 4, 8}, {4, 4}, 2, "BSND"), 161002);
  Array q({1, 4, 2, 8}), top({1, 2, 4, 8}), mask({4, 4}, ACL_FLOAT), none({0});
  CHECK_EQ(refusal("FlashAttentionScore", in(q), in(q), in(q), kNone, kNone, kNone, in(mask), kNoInts, 1.0,
                   1.0, kFar, kFar, std::int64_t{2}, "BSND", kZero, kZero, in(top), in(top), in(none), in(q)),
           161002);
}

TEST("attention's gradient asks the context alone for determinism") {
  Session session;
  const std::int64_t s = 150, heads = 1, width = 8;
  Array q({1, s, heads, width}, numbers(s * width, 1)), k({1, s, heads, width}, numbers(s * width, 2)),
      y({1, s, heads, width});
  Array top({1, heads, s, 8}), total({1, heads, s, 8}), none({0}), dq({1, s, heads, width}),
      dk({1, s, heads, width}), dv({1, s, heads, width});
  run(session, "FlashAttentionScore", in(q), in(k), in(k), kNone, kNone, kNone, kNone, kNoInts, 1.0, 1.0,
      kFar, kFar, heads, "BSND", kZero, kZero, in(top), in(total), in(none), in(y));
  const auto outcomes = [&] {
    std::vector<Values> seen;
    for (int i = 0; i < 8; ++i) {
      run(session, "FlashAttentionScoreGrad", in(q), in(k), in(k), in(q), kNone, kNone, kNone, kNone, in(top),
          in(total), kNone, in(y), kNoInts, 1.0, 1.0, kFar, kFar, heads, "BSND", kZero, kZero, in(dq), in(dk),
          in(dv), in(none));
      const Values now = dk.values();
      bool known = false;
      for (const Values& one : seen) known = known || one == now;
      if (!known) seen.push_back(now);
    }
    return seen.size();
  };
  OK(call("aclrtSetSysParamOpt", 0, std::int64_t{1}));
  CHECK(outcomes() > 1);
  OK(call("aclrtCtxSetSysParamOpt", 0, std::int64_t{1}));
  CHECK_EQ(outcomes(), 1u);
}

TEST("rotary embedding is complex multiplication in mode 1, of halves in mode 0") {
  Session session;
  const std::int64_t b = 2, s = 3, n = 2, d = 6;
  const Values x = numbers(b * s * n * d, 1), angles = numbers(s * d / 2, 2, -3, 3);
  for (const std::int64_t mode : {0, 1}) {
    Values cos, sin, wanted(x.size()), back(x.size());
    const auto pair = [&](std::int64_t i) { return mode == 1 ? i / 2 : i % (d / 2); };
    for (int p = 0; p < s; ++p)
      for (int i = 0; i < d; ++i) {
        cos.push_back(std::cos(angles[p * d / 2 + pair(i)]));
        sin.push_back(std::sin(angles[p * d / 2 + pair(i)]));
      }
    for (int row = 0; row < b * s * n; ++row)
      for (int p = 0; p < d / 2; ++p) {
        const int first = row * d + (mode == 1 ? 2 * p : p), second = mode == 1 ? first + 1 : first + d / 2;
        const double angle = angles[row / n % s * d / 2 + p], c = std::cos(angle), t = std::sin(angle);
        wanted[first] = x[first] * c - x[second] * t;
        wanted[second] = x[second] * c + x[first] * t;
        back[first] = x[first] * c + x[second] * t;
        back[second] = x[second] * c - x[first] * t;
      }
    Array tx({b, s, n, d}, x), tc({1, s, 1, d}, cos), ts({1, s, 1, d}, sin), ty({b, s, n, d}),
        unused({1, s, 1, d});
    run(session, "RotaryPositionEmbedding", in(tx), in(tc), in(ts), mode, out(ty));
    check_close(ty.values(), wanted, 1e-6, "RotaryPositionEmbedding");
    run(session, "RotaryPositionEmbeddingGrad", in(tx), in(tc), in(ts), kNone, mode, out(ty), out(unused),
        out(unused));
    check_close(ty.values(), back, 1e-6, "RotaryPositionEmbeddingGrad");
  }
  Array tx({b, s, n, d}), full({b, s, 1, d}), brain({1, s, 1, d}, ACL_BF16), good({1, s, 1, d}),
      odd({b, s, n, 5});
  Array odd_table({1, s, 1, 5}), many({40, s, 25, d});
  const std::int64_t one = 1, two = 2;
  CHECK_EQ(refusal("RotaryPositionEmbedding", in(tx), in(good), in(good), one, out(tx)), 0);
  CHECK_EQ(refusal("RotaryPositionEmbedding", in(tx), in(full), in(full), one, out(tx)), 161002);
  CHECK_EQ(refusal("RotaryPositionEmbedding", in(tx), in(full), in(full), kZero, out(tx)), 0);
  CHECK_EQ(refusal("RotaryPositionEmbedding", in(tx), in(brain), in(brain), one, out(tx)), 161002);
  CHECK_EQ(refusal("RotaryPositionEmbedding", in(tx), in(good), in(good), two, out(tx)), 161002);
  CHECK_EQ(refusal("RotaryPositionEmbedding", in(odd), in(odd_table), in(odd_table), one, out(odd)), 161002);
  CHECK_EQ(refusal("RotaryPositionEmbedding", in(many), in(good), in(good), one, out(many)), 161002);
}

TEST("convolution and its gradients") {
  Session session;
  session.deterministic(true);
  const std::int64_t b = 2, c = 3, h = 5, w = 6, o = 4, kh = 3, kw = 3, oh = 3, ow = 3;
  const Values x = numbers(b * c * h * w, 1), k = numbers(o * c * kh * kw, 2), bias = numbers(o, 3);
  // stride 2; one row above and below, one column left, none right: (5+2-3)/2+1 = 3, (6+1-3)/2+1 = 3
  const auto forward = [&](const Values& ax, const Values& ak) {
    Values y;
    for (int i = 0; i < b; ++i)
      for (int p = 0; p < o; ++p)
        for (int r = 0; r < oh; ++r)
          for (int q = 0; q < ow; ++q) {
            double total = bias[p];
            for (int ch = 0; ch < c; ++ch)
              for (int u = 0; u < kh; ++u)
                for (int t = 0; t < kw; ++t) {
                  const int row = r * 2 - 1 + u, column = q * 2 - 1 + t;
                  if (row >= 0 && row < h && column >= 0 && column < w)
                    total += ax[((i * c + ch) * h + row) * w + column] * ak[((p * c + ch) * kh + u) * kw + t];
                }
            y.push_back(total);
          }
    return y;
  };
  Array tx({b, c, h, w}, x, ACL_FLOAT, ACL_FORMAT_NCHW), tk({o, c, kh, kw}, k, ACL_FLOAT, ACL_FORMAT_NCHW),
      tb({o}, bias);
  Array ty({b, o, oh, ow}, ACL_FLOAT, ACL_FORMAT_NCHW), plain({b, c, h, w}, x);
  const auto two = ints({2, 2}), pads = ints({1, 1, 1, 0}), one = ints({1, 1}), zero = ints({0, 0}),
             sizes = ints({o});
  const aclIntArray *stride = two, *pad = pads, *dilation = one, *more = zero, *bias_sizes = sizes;
  run(session, "Convolution", in(tx), in(tk), in(tb), stride, pad, dilation, false, more, std::int64_t{1},
      out(ty), std::int8_t{0});
  check_close(ty.values(), forward(x, k), 1e-5, "Convolution");
  CHECK_EQ(refusal("Convolution", in(plain), in(tk), in(tb), stride, pad, dilation, false, more,
                   std::int64_t{1}, out(ty), std::int8_t{0}),
           161002);
  CHECK(message().find("NCHW") != std::string::npos);
  CHECK_EQ(refusal("Convolution", in(tx), in(tk), in(tb), stride, pad, dilation, false, kNoInts,
                   std::int64_t{1}, out(ty), std::int8_t{0}),
           161001);
  const Values g = numbers(b * o * oh * ow, 4);
  Array dy({b, o, oh, ow}, g, ACL_FLOAT, ACL_FORMAT_NCHW), dx({b, c, h, w}, ACL_FLOAT, ACL_FORMAT_NCHW);
  Array dk({o, c, kh, kw}, ACL_FLOAT, ACL_FORMAT_NCHW), db({o});
  const auto mask = bools({true, true, true});
  run(session, "ConvolutionBackward", in(dy), in(tx), in(tk), bias_sizes, stride, pad, dilation, false, more,
      int{1}, static_cast<const aclBoolArray*>(mask), std::int8_t{0}, out(dx), out(dk), out(db));
  check_close(dx.values(), slope_by_differences(x, [&](const Values& at) { return dot(forward(at, k), g); }),
              1e-4, "dx");
  check_close(dk.values(), slope_by_differences(k, [&](const Values& at) { return dot(forward(x, at), g); }),
              1e-4, "dk");
  Values sums(o);
  for (std::size_t i = 0; i < g.size(); ++i) sums[i / (oh * ow) % o] += g[i];
  check_close(db.values(), sums, 1e-5, "db");
}

TEST("nearest upsampling and its gradient want image tags") {
  Session session;
  const Values x = numbers(2 * 3 * 2 * 3, 1), g = numbers(2 * 3 * 4 * 6, 2);
  Array tx({2, 3, 2, 3}, x, ACL_FLOAT, ACL_FORMAT_NCHW), ty({2, 3, 4, 6}, ACL_FLOAT, ACL_FORMAT_NCHW),
      plain({2, 3, 2, 3}, x);
  const auto size = ints({4, 6}), whole = ints({2, 3, 2, 3});
  const aclIntArray *to = size, *from = whole;
  run(session, "UpsampleNearest2d", in(tx), to, out(ty));
  Values wanted, slopes(x.size());
  for (int p = 0; p < 6; ++p)
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 6; ++j) {
        wanted.push_back(x[(p * 2 + i / 2) * 3 + j / 2]);
        slopes[(p * 2 + i / 2) * 3 + j / 2] += g[(p * 4 + i) * 6 + j];
      }
  check_close(ty.values(), wanted, 0, "UpsampleNearest2d");
  CHECK_EQ(refusal("UpsampleNearest2d", in(plain), to, out(ty)), 161002);
  Array dy({2, 3, 4, 6}, g, ACL_FLOAT, ACL_FORMAT_NCHW), dx({2, 3, 2, 3}, ACL_FLOAT, ACL_FORMAT_NCHW);
  run(session, "UpsampleNearest2dBackward", in(dy), to, from, 0.0, 0.0, out(dx));
  check_close(dx.values(), slopes, 1e-6, "UpsampleNearest2dBackward");
  CHECK_EQ(refusal("UpsampleBilinear2d", in(tx), to, false, -1.0, -1.0, out(ty)), 161002);
}
