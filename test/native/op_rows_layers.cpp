// Rows of ops that layers are made of, and of fused ops; and the sizes that are timed.
#include "op_rows.h"

namespace danceflux::test {
namespace {

constexpr DType kStored[] = {DType::f32, DType::bf16, DType::f16};

/// Weights of a layer with `in` inputs keep the size of what goes through them.
OpInput weights(const Shape& shape, std::int64_t in, DType dtype) {
  return normal(shape, dtype, 1 / std::sqrt(static_cast<float>(in > 0 ? in : 1)));
}

double bytes_of(const Shape& shape, DType dtype = DType::f32) {
  return static_cast<double>(shape.numel()) * static_cast<double>(size_of(dtype));
}

/// One or two numbers are normalised to +-1 whatever they are: without a large eps their gradient is the
/// difference of equal numbers.
float eps_for(std::int64_t group) { return group < 3 ? 0.5f : 1e-6f; }

double matmul_flops(double M, double N, double K) { return 2 * M * N * K; }

}  // namespace

OpCase linear_row(const Shape& x, std::int64_t out, DType dtype, bool bias) {
  const std::int64_t in = x[-1], rows = in ? x.numel() / in : 0;
  OpCase row{.name = label("linear", name_of(dtype), x, "to", out, bias ? "with bias" : ""),
             .family = Family::matmul};
  row.inputs = {batch(x), weights({out, in}, in, dtype)};
  if (bias) row.inputs.push_back(vector(normal({out})));
  row.forward = one(
      [](In inputs) { return ops::linear(inputs[0], inputs[1], inputs.size() > 2 ? inputs[2] : Tensor()); });
  row.flops = matmul_flops(static_cast<double>(rows), static_cast<double>(out), static_cast<double>(in));
  row.bytes = bytes_of(x) + bytes_of({out, in}, dtype) + bytes_of({rows, out});
  return row;
}

void add_matmul_rows(std::vector<OpCase>& rows) {
  const auto product = one([](In in) { return ops::matmul(in[0], in[1], 0.5f); });
  for (const auto& [a, b] : {std::pair{Shape{3, 5}, Shape{5, 7}},
                             {Shape{1, 1}, Shape{1, 1}},
                             {Shape{17, 33}, Shape{33, 65}},
                             {Shape{2, 3, 5, 4}, Shape{2, 3, 4, 6}},
                             {Shape{2, 1, 5, 4}, Shape{3, 4, 6}},
                             {Shape{4, 5, 6}, Shape{6, 3}},
                             {Shape{5, 6}, Shape{2, 6, 3}},
                             {Shape{1, 300}, Shape{300, 1}},
                             {Shape{130, 70}, Shape{70, 100}}}) {
    rows.push_back({.name = label("matmul", a, b),
                    .family = Family::matmul,
                    .inputs = {normal(a), normal(b)},
                    .forward = product});
  }
  rows.push_back({.name = "matmul transposed both",
                  .family = Family::matmul,
                  .inputs = {normal({3, 7, 5}), normal({3, 9, 7})},
                  .forward = one([](In in) {
                    return ops::matmul(ops::transpose(in[0], 1, 2), ops::transpose(in[1], 1, 2));
                  })});
  rows.push_back({.name = "matmul of nothing",
                  .family = Family::matmul,
                  .inputs = {normal({3, 0}), normal({0, 4})},
                  .forward = product});
  rows.push_back({.name = "matmul without rows",
                  .family = Family::matmul,
                  .inputs = {normal({0, 3}), normal({3, 4})},
                  .forward = product});
  for (const DType dtype : kStored) {
    rows.push_back(linear_row({3, 5, 7}, 4, dtype, true));
    rows.push_back(linear_row({2, 33}, 65, dtype, false));
    rows.push_back(linear_row({1, 1}, 1, dtype, true));
    rows.push_back(linear_row({2, 19, 40}, 72, dtype, true));
    rows.push_back({.name = label("matmul of stored", name_of(dtype)),
                    .family = Family::matmul,
                    .inputs = {normal({6, 9}), weights({9, 5}, 9, dtype)},
                    .forward = product});
  }
  rows.push_back(linear_row({2, 0, 5}, 3, DType::f32, true));
  rows.push_back(linear_row({9}, 5, DType::f32, true));
  rows.push_back({.name = "linear of a view",
                  .family = Family::matmul,
                  .inputs = {normal({2, 9, 6}), normal({5, 4})},
                  .forward = one([](In in) {
                    return ops::linear(ops::narrow(ops::narrow(in[0], 1, 3, 5), 2, 1, 4), in[1], {});
                  })});
  rows.push_back(
      {.name = "linear twice with one weight",
       .family = Family::matmul,
       .inputs = {normal({4, 6}), normal({6, 6}, DType::f32, 0.4f)},
       .forward = one([](In in) { return ops::linear(ops::linear(in[0], in[1], {}), in[1], {}); })});
}

void add_norm_rows(std::vector<OpCase>& rows) {
  const auto add = [&](std::string name, std::vector<OpInput> inputs, Forward forward) {
    rows.push_back({.name = std::move(name),
                    .family = Family::norm,
                    .inputs = std::move(inputs),
                    .forward = std::move(forward)});
  };
  for (const Shape& x : {Shape{2, 3, 37}, Shape{5, 64}, Shape{1, 1}, Shape{7}, Shape{0, 8}, Shape{130, 24}}) {
    const OpInput scale = vector(normal({x[-1]}, DType::f32, 0.2f, 1)), shift = vector(normal({x[-1]}));
    const float eps = eps_for(x[-1]);
    add(label("layer_norm", x), {batch(x), scale, shift},
        one([eps](In in) { return ops::layer_norm(in[0], in[1], in[2], eps); }));
    add(label("rms_norm", x), {batch(x), scale},
        one([eps](In in) { return ops::rms_norm(in[0], in[1], eps); }));
  }
  add("layer_norm plain", {batch({4, 33})}, one([](In in) { return ops::layer_norm(in[0], {}, {}, 1e-5f); }));
  add("layer_norm off centre", {normal({4, 33}, DType::f32, 1, 30)},
      one([](In in) { return ops::layer_norm(in[0], {}, {}, 1e-5f); }));
  add("rms_norm plain", {batch({4, 33})}, one([](In in) { return ops::rms_norm(in[0], {}, 1e-5f); }));
  add("layer_norm of a view", {normal({2, 5, 9}), vector(normal({7}))}, one([](In in) {
        return ops::layer_norm(ops::narrow(ops::narrow(in[0], 1, 1, 3), 2, 1, 7), in[1], {}, 1e-6f);
      }));
  add("rms_norm of a view", {normal({2, 5, 3, 8}), vector(normal({8}))}, one([](In in) {
        return ops::rms_norm(ops::permute(in[0], {0, 2, 1, 3}), in[1], 1e-6f);
      }));
  for (const auto& [x, groups] :
       {std::pair{Shape{2, 6, 3, 5}, 3}, {Shape{1, 4, 7, 1}, 1}, {Shape{3, 8, 4, 4}, 8}, {Shape{2, 4}, 2}}) {
    add(label("group_norm", x, "in", groups),
        {batch(x), vector(normal({x[1]}, DType::f32, 0.2f, 1)), vector(normal({x[1]}))},
        one([groups = groups, eps = eps_for(x.numel() / x[0] / groups)](In in) {
          return ops::group_norm(in[0], groups, in[1], in[2], eps);
        }));
  }
  add("group_norm plain", {batch({2, 6, 3, 5})},
      one([](In in) { return ops::group_norm(in[0], 2, {}, {}, 1e-6f); }));
  for (const Shape& x : {Shape{2, 5, 3, 8}, Shape{1, 1, 1, 2}, Shape{2, 7, 1, 34}}) {
    add(label("rope", x),
        {batch(x), vector(fixed(normal({x[1], x[3] / 2}))), vector(fixed(normal({x[1], x[3] / 2})))},
        one([](In in) { return ops::rope(in[0], in[1], in[2]); }));
  }
  add("rope of a view", {normal({2, 3, 5, 16}), vector(fixed(normal({5, 4}))), vector(fixed(normal({5, 4})))},
      one([](In in) {
        return ops::rope(ops::permute(ops::narrow(in[0], 3, 8, 8), {0, 2, 1, 3}), in[1], in[2]);
      }));
}

OpCase conv_row(const Shape& x, const Shape& weight, const ConvArgs& args, DType dtype, bool bias) {
  const std::int64_t fan_in = weight[1] * weight[2] * weight[3];
  OpCase row{.name = label("conv2d", name_of(dtype), x, weight, "stride", args.stride, "pad", args.pad_top,
                           args.pad_left, args.pad_bottom, args.pad_right),
             .family = Family::conv};
  row.inputs = {batch(x), weights(weight, fan_in, dtype)};
  if (bias) row.inputs.push_back(vector(normal({weight[0]})));
  row.forward =
      one([args](In in) { return ops::conv2d(in[0], in[1], in.size() > 2 ? in[2] : Tensor(), args); });
  const double pixels =
      static_cast<double>(((x[2] + args.pad_top + args.pad_bottom - weight[2]) / args.stride + 1) *
                          ((x[3] + args.pad_left + args.pad_right - weight[3]) / args.stride + 1));
  row.flops = matmul_flops(pixels * static_cast<double>(x[0]), static_cast<double>(weight[0]),
                           static_cast<double>(fan_in));
  row.bytes = bytes_of(x) + bytes_of(weight, dtype);
  return row;
}

void add_image_rows(std::vector<OpCase>& rows) {
  const ConvArgs same{.stride = 1, .pad_top = 1, .pad_left = 1, .pad_bottom = 1, .pad_right = 1};
  const ConvArgs down{.stride = 2, .pad_top = 0, .pad_left = 0, .pad_bottom = 1, .pad_right = 1};
  for (const DType dtype : kStored) {
    rows.push_back(conv_row({2, 3, 5, 7}, {4, 3, 3, 3}, same, dtype, true));
    rows.push_back(conv_row({2, 5, 4, 3}, {3, 5, 1, 1}, {}, dtype, true));
  }
  rows.push_back(conv_row({1, 3, 8, 6}, {5, 3, 3, 3}, down, DType::f32, true));
  rows.push_back(conv_row({2, 2, 9, 9}, {3, 2, 4, 4}, {.stride = 4}, DType::f32, false));
  rows.push_back(conv_row({1, 1, 1, 1}, {1, 1, 1, 1}, {}, DType::f32, true));
  rows.push_back(conv_row({1, 2, 1, 1}, {2, 2, 3, 3}, same, DType::f32, false));
  rows.push_back(conv_row({2, 17, 9, 10}, {19, 17, 3, 3}, same, DType::f32, true));
  rows.push_back({.name = "conv2d of a view",
                  .family = Family::conv,
                  .inputs = {normal({2, 5, 6, 3}), normal({4, 3, 3, 3}, DType::f32, 0.2f)},
                  .forward = one([same](In in) {
                    return ops::conv2d(ops::permute(in[0], {0, 3, 1, 2}), in[1], {}, same);
                  })});
}

OpCase attention_row(std::int64_t B, std::int64_t Lq, std::int64_t Lk, std::int64_t H, std::int64_t K,
                     int bias_batch, bool causal) {
  const Shape q{B, Lq, H, K}, kv{B, Lk, H, K};
  OpCase row{.name = label("attention", q, Lk, "keys", causal ? "causal" : "",
                           bias_batch ? label("bias", bias_batch) : ""),
             .family = Family::attention,
             .shortcut = "attention",
             .shortcut_backward = "attention_backward"};
  row.inputs = {batch(q), batch(kv), batch(kv)};
  if (bias_batch) {
    row.inputs.push_back(normal({bias_batch, H, Lq, Lk}));
    row.inputs.back().batched = bias_batch > 1;
  }
  const AttentionArgs args{.scale = 1 / std::sqrt(static_cast<float>(K)), .causal = causal};
  row.forward = one(
      [args](In in) { return ops::attention(in[0], in[1], in[2], in.size() > 3 ? in[3] : Tensor(), args); });
  row.flops = 4 * static_cast<double>(B * H * Lq * Lk * K);
  row.bytes = 2 * (bytes_of(q) + bytes_of(kv));
  return row;
}

void add_attention_rows(std::vector<OpCase>& rows) {
  rows.push_back(attention_row(2, 5, 5, 3, 8, 0, false));
  rows.push_back(attention_row(1, 1, 1, 1, 2, 0, false));
  rows.push_back(attention_row(2, 7, 13, 2, 16, 0, false));
  rows.push_back(attention_row(1, 77, 77, 2, 12, 0, true));
  rows.push_back(attention_row(2, 96, 96, 4, 32, 0, false));
  rows.push_back(attention_row(1, 131, 67, 1, 80, 0, false));
  rows.push_back(attention_row(1, 70, 130, 1, 64, 0, false));
  rows.push_back(attention_row(1, 33, 65, 2, 128, 1, false));
  rows.push_back(attention_row(1, 9, 40, 1, 512, 0, false));
  rows.push_back(attention_row(2, 21, 33, 2, 160, 0, false));
  rows.push_back(attention_row(1, 17, 17, 1, 512, 0, true));
  rows.push_back(attention_row(1, 9, 11, 1, 160, 1, false));
  rows.push_back(attention_row(2, 5, 7, 3, 8, 1, false));
  rows.push_back(attention_row(3, 6, 6, 2, 10, 3, false));
  rows.push_back(attention_row(2, 9, 9, 2, 8, 1, true));
  rows.push_back(attention_row(2, 77, 77, 1, 64, 0, true));
  rows.push_back(attention_row(1, 35, 70, 1, 128, 0, true));
  for (OpCase fixed_bias :
       {attention_row(2, 21, 21, 3, 16, 1, false), attention_row(2, 40, 72, 1, 32, 2, false),
        attention_row(1, 70, 50, 1, 80, 1, true)}) {
    fixed_bias.name += " fixed";
    fixed_bias.inputs[3].gradient = false;
    rows.push_back(fixed_bias);
  }
  // As a model calls it: three parts of one projection, seen by head.
  rows.push_back({.name = "attention of one projection",
                  .family = Family::attention,
                  .inputs = {batch({2, 11, 3 * 4 * 8})},
                  .forward = one([](In in) {
                    const auto parts = ops::split(ops::reshape(in[0], {in[0].dim(0), 11, 12, 8}),
                                                  std::vector<std::int64_t>{4, 4, 4}, 2);
                    return ops::attention(parts[0], parts[1], parts[2], {}, {.scale = 0.35f});
                  }),
                  .shortcut = "attention",
                  .shortcut_backward = "attention_backward"});
}

OpCase linear_activation_row(UnaryOp op, const char* op_name, const Shape& x, std::int64_t out, DType dtype,
                             bool bias) {
  OpCase row = linear_row(x, out, dtype, bias);
  row.name = label(op_name, "of", row.name);
  row.forward =
      one([op](In in) { return ops::linear_activation(op, in[0], in[1], in.size() > 2 ? in[2] : Tensor()); });
  row.shortcut = "linear_activation";
  return row;
}

OpCase modulated_norm_row(const Shape& x) {
  const OpInput vector{.shape = {x[0], x[2]}, .batched = true};
  OpCase row{
      .name = label("modulated_norm", x), .family = Family::norm, .inputs = {batch(x), vector, vector}};
  row.forward = one([](In in) { return ops::modulated_norm(in[0], in[1], in[2], 1e-6f); });
  row.shortcut = "modulated_norm";
  row.shortcut_backward = "modulated_norm_backward";
  row.bytes = 2 * bytes_of(x);
  return row;
}

OpCase gated_residual_row(const Shape& x) {
  const OpInput gate{.shape = {x[0], x[2]}, .batched = true};
  OpCase row{.name = label("gated_residual", x),
             .family = Family::elementwise,
             .inputs = {batch(x), gate, batch(x)}};
  row.forward = one([](In in) { return ops::gated_residual(in[0], in[1], in[2]); });
  row.shortcut = "gated_residual";
  row.shortcut_backward = "gated_residual_backward";
  row.bytes = 3 * bytes_of(x);
  return row;
}

OpCase qk_norm_rope_row(std::int64_t B, std::int64_t L, std::int64_t H, std::int64_t K) {
  const Shape x{B, L, H, K};
  const OpInput table = vector(fixed(normal({L, K / 2})));
  OpCase row{.name = label("qk_norm_rope", x),
             .family = Family::norm,
             .inputs = {batch(x), vector(normal({K}, DType::f32, 0.2f, 1)), table, table}};
  row.forward = one([](In in) { return ops::qk_norm_rope(in[0], in[1], in[2], in[3], 1e-6f); });
  row.shortcut = "qk_norm_rope";
  row.shortcut_backward = "qk_norm_rope_backward";
  row.bytes = 2 * bytes_of(x);
  return row;
}

OpCase group_norm_silu_row(const Shape& x, int groups) {
  OpCase row{.name = label("group_norm_silu", x, "in", groups),
             .family = Family::norm,
             .inputs = {batch(x), vector(normal({x[1]}, DType::f32, 0.2f, 1)), vector(normal({x[1]}))}};
  row.forward = one([groups](In in) { return ops::group_norm_silu(in[0], groups, in[1], in[2], 1e-6f); });
  row.shortcut = "group_norm_silu";
  row.bytes = 2 * bytes_of(x);
  return row;
}

namespace {

/// A row of x, v, noise or next, and numbers that steps have.
OpCase flow_row(const char* op, const Shape& x) {
  OpInput image = batch(x), numbers = normal({x[0], 5}, DType::f32, 0.3f, 1);
  image.vector = numbers.vector = numbers.batched = true;
  return {.name = label(op, x),
          .family = Family::reduce,
          .inputs = {image, image, image, numbers},
          .shortcut = op,
          .bytes = 4 * bytes_of(x)};
}

}  // namespace

OpCase flow_step_row(const Shape& x) {
  OpCase row = flow_row("flow_step", x);
  row.forward = [](In in) {
    const auto [next, log_prob] = ops::flow_step(in[0], in[1], in[2], in[3]);
    return std::vector<Tensor>{next, log_prob};
  };
  return row;
}

OpCase flow_log_prob_row(const Shape& x) {
  OpCase row = flow_row("flow_log_prob", x);
  row.inputs[2].gradient = row.inputs[3].gradient = false;  // else the kernel is not asked
  row.forward = one([](In in) { return ops::flow_log_prob(in[0], in[1], in[2], in[3]); });
  row.shortcut_backward = "flow_log_prob_backward";
  row.bytes = 3 * bytes_of(x);
  return row;
}

namespace {

void add_flow_rows(std::vector<OpCase>& rows) {
  for (const Shape& x : {Shape{2, 5, 7}, Shape{1, 1}, Shape{3, 2051}, Shape{2, 70, 64}, Shape{0, 4, 3}}) {
    rows.push_back(flow_step_row(x));
    rows.push_back(flow_log_prob_row(x));
  }
  OpCase all = flow_log_prob_row({2, 3, 9});
  all.name += " by all of its inputs";
  for (OpInput& input : all.inputs) input.gradient = true;
  rows.push_back(all);
  OpCase mean = flow_step_row({2, 3, 9});
  mean.name = "flow_step without noise";
  mean.inputs.erase(mean.inputs.begin() + 2);
  mean.forward = one([](In in) { return ops::flow_step(in[0], in[1], {}, in[2]).next; });
  rows.push_back(mean);
  // As a step calls it: rows of a table, latents that are parts of others.
  OpCase views = flow_log_prob_row({2, 6, 9});
  views.name += " of views";
  views.inputs[3].shape = {2, 6};
  views.forward = one([](In in) {
    const auto part = [](const Tensor& x) { return ops::narrow(x, 1, 2, 3); };
    return ops::flow_log_prob(part(in[0]), ops::permute(ops::permute(part(in[1]), {0, 2, 1}), {0, 2, 1}),
                              part(in[2]), ops::narrow(in[3], 1, 1, 5));
  });
  rows.push_back(views);
}

}  // namespace

void add_fused_rows(std::vector<OpCase>& rows) {
  for (const auto& [op, name] : {std::pair{UnaryOp::gelu_tanh, "gelu_tanh"},
                                 {UnaryOp::gelu_erf, "gelu_erf"},
                                 {UnaryOp::quick_gelu, "quick_gelu"},
                                 {UnaryOp::silu, "silu"}}) {
    rows.push_back(linear_activation_row(op, name, {2, 5, 33}, 17, DType::f32, true));
  }
  for (const DType dtype : kStored) {
    rows.push_back(linear_activation_row(UnaryOp::gelu_tanh, "gelu_tanh", {3, 40}, 24, dtype, false));
  }
  for (const Shape& x : {Shape{2, 5, 37}, Shape{1, 1, 8}, Shape{3, 96, 128}, Shape{2, 0, 4}}) {
    rows.push_back(modulated_norm_row(x));
    rows.push_back(gated_residual_row(x));
  }
  // As a model calls it: scale, shift and gate are parts of one modulation, x is a range of the tokens.
  rows.push_back({.name = "modulated_norm of views",
                  .family = Family::norm,
                  .inputs = {batch({2, 9, 12}), batch({2, 36})},
                  .forward = one([](In in) {
                    const auto parts = ops::split(in[1], std::vector<std::int64_t>{12, 12, 12}, 1);
                    const Tensor x = ops::narrow(in[0], 1, 4, 5);
                    return ops::gated_residual(x, parts[2],
                                               ops::modulated_norm(x, parts[0], parts[1], 1e-6f));
                  }),
                  .shortcut = "modulated_norm",
                  .shortcut_backward = "modulated_norm_backward"});
  for (const std::int64_t K : {8, 32, 34, 128}) rows.push_back(qk_norm_rope_row(2, 7, 3, K));
  rows.push_back(qk_norm_rope_row(1, 1, 1, 2));
  rows.push_back({.name = "qk_norm_rope of one projection",
                  .family = Family::norm,
                  .inputs = {batch({2, 6, 3 * 2 * 16}), vector(normal({16}, DType::f32, 0.2f, 1)),
                             vector(fixed(normal({6, 8}))), vector(fixed(normal({6, 8})))},
                  .forward =
                      [](In in) {
                        const auto parts = ops::split(in[0], std::vector<std::int64_t>{32, 32, 32}, 2);
                        const auto head = [&](int i) {
                          return ops::reshape(parts[static_cast<std::size_t>(i)], {in[0].dim(0), 6, 2, 16});
                        };
                        return std::vector<Tensor>{ops::qk_norm_rope(head(0), in[1], in[2], in[3], 1e-6f),
                                                   ops::qk_norm_rope(head(1), in[1], in[2], in[3], 1e-6f),
                                                   head(2)};
                      },
                  .shortcut = "qk_norm_rope",
                  .shortcut_backward = "qk_norm_rope_backward"});
  rows.push_back(group_norm_silu_row({2, 6, 3, 5}, 3));
  rows.push_back(group_norm_silu_row({1, 32, 8, 8}, 32));
  add_flow_rows(rows);
}

void add_bench_rows(std::vector<OpCase>& rows) {
  const std::size_t first = rows.size();
  // The tiny transformer at batch 12: 64 image and 32 text tokens, width 128, 4 heads.
  rows.push_back(linear_row({12, 96, 128}, 384, DType::f32, true));
  rows.push_back(linear_row({12, 96, 640}, 128, DType::f32, true));
  rows.push_back(
      linear_activation_row(UnaryOp::gelu_tanh, "gelu_tanh", {12, 64, 128}, 512, DType::f32, true));
  rows.push_back(attention_row(12, 96, 96, 4, 32, 0, false));
  rows.push_back(modulated_norm_row({12, 96, 128}));
  rows.push_back(gated_residual_row({12, 96, 128}));
  rows.push_back(qk_norm_rope_row(12, 96, 4, 32));
  // FLUX widths, few enough tokens that the check is a matter of seconds.
  for (const DType dtype : kStored) rows.push_back(linear_row({1, 64, 3072}, 3072, dtype, true));
  rows.push_back(attention_row(1, 512, 512, 4, 128, 0, false));
  rows.push_back(modulated_norm_row({1, 1024, 3072}));
  rows.push_back(gated_residual_row({1, 1024, 3072}));
  rows.push_back(qk_norm_rope_row(1, 1024, 24, 128));
  rows.push_back(flow_step_row({4, 4096, 64}));
  rows.push_back(flow_log_prob_row({4, 4096, 64}));
  // What the kernels gain: the same by the ops that they are made of.
  OpCase step = flow_step_row({4, 4096, 64}), density = flow_log_prob_row({4, 4096, 64});
  for (OpCase* row : {&step, &density}) {
    row->name += ", in parts";
    row->shortcut = row->shortcut_backward = "";
  }
  step.forward = [](In in) {
    const auto [next, log_prob] = ops::composed::flow_step(in[0], in[1], in[2], in[3]);
    return std::vector<Tensor>{next, log_prob};
  };
  density.forward = one([](In in) { return ops::composed::flow_log_prob(in[0], in[1], in[2], in[3]); });
  rows.push_back(step);
  rows.push_back(density);
  // The autoencoder.
  const ConvArgs same{.stride = 1, .pad_top = 1, .pad_left = 1, .pad_bottom = 1, .pad_right = 1};
  rows.push_back(conv_row({1, 128, 32, 32}, {128, 128, 3, 3}, same, DType::f32, true));
  rows.push_back(group_norm_silu_row({1, 128, 64, 64}, 32));
  rows.push_back({.name = "softmax [2048, 1024]",
                  .family = Family::reduce,
                  .inputs = {normal({2048, 1024})},
                  .forward = one([](In in) { return ops::softmax(in[0]); }),
                  .bytes = 2 * bytes_of({2048, 1024})});
  rows.push_back({.name = "mul [1024, 3072]",
                  .family = Family::elementwise,
                  .inputs = {normal({1024, 3072}), normal({1024, 3072})},
                  .forward = one([](In in) { return ops::mul(in[0], in[1]); }),
                  .bytes = 3 * bytes_of({1024, 3072})});
  rows.push_back({.name = "gelu_tanh [1024, 3072]",
                  .family = Family::elementwise,
                  .inputs = {normal({1024, 3072})},
                  .forward = one([](In in) { return ops::unary(UnaryOp::gelu_tanh, in[0]); }),
                  .bytes = 2 * bytes_of({1024, 3072})});
  for (std::size_t i = first; i < rows.size(); ++i) rows[i].size = Size::bench;
}

}  // namespace danceflux::test
