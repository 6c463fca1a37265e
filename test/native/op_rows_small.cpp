// Rows of ops that move, map or reduce elements.
#include "op_rows.h"

namespace danceflux::test {
namespace {

struct UnaryRow {
  UnaryOp op;
  const char* name;
  bool positive_only = false;
  float a = 1, b = 0;
};

constexpr UnaryRow kUnary[] = {{UnaryOp::affine, "affine", false, -2.5f, 0.75f},
                               {UnaryOp::clamp, "clamp", false, -0.5f, 0.8f},
                               {UnaryOp::exp, "exp"},
                               {UnaryOp::log, "log", true},
                               {UnaryOp::sqrt, "sqrt", true},
                               {UnaryOp::rsqrt, "rsqrt", true},
                               {UnaryOp::square, "square"},
                               {UnaryOp::reciprocal, "reciprocal", true},
                               {UnaryOp::tanh, "tanh"},
                               {UnaryOp::sigmoid, "sigmoid"},
                               {UnaryOp::silu, "silu"},
                               {UnaryOp::gelu_tanh, "gelu_tanh"},
                               {UnaryOp::gelu_erf, "gelu_erf"},
                               {UnaryOp::quick_gelu, "quick_gelu"}};

struct BinaryRow {
  BinaryOp op;
  const char* name;
};

constexpr BinaryRow kBinary[] = {{BinaryOp::add, "add"}, {BinaryOp::sub, "sub"}, {BinaryOp::mul, "mul"},
                                 {BinaryOp::div, "div"}, {BinaryOp::max, "max"}, {BinaryOp::min, "min"}};

struct ReduceRow {
  ReduceOp op;
  const char* name;
};

constexpr ReduceRow kReduce[] = {{ReduceOp::sum, "sum"},
                                 {ReduceOp::mean, "mean"},
                                 {ReduceOp::max, "max"},
                                 {ReduceOp::sum_of_squares, "sum_of_squares"}};

}  // namespace

void add_shape_rows(std::vector<OpCase>& rows) {
  const auto add = [&](std::string name, std::vector<OpInput> inputs, Forward forward) {
    rows.push_back({.name = std::move(name), .inputs = std::move(inputs), .forward = std::move(forward)});
  };
  add("contiguous transposed", {normal({3, 5, 7})},
      one([](In in) { return ops::contiguous(ops::transpose(in[0], 0, 2)); }));
  add("reshape view", {normal({4, 6, 5})}, one([](In in) { return ops::reshape(in[0], {2, -1, 5}); }));
  add("reshape copy", {normal({4, 6, 5})}, one([](In in) {
        return ops::reshape(ops::permute(in[0], {1, 0, 2}), {6, 20});
      }));
  add("permute 5", {normal({2, 3, 1, 4, 5})}, one([](In in) {
        return ops::permute(in[0], {4, 2, 0, -2, 1});
      }));
  add("patches 6", {normal({2, 3, 4, 6})}, one([](In in) {
        return ops::reshape(ops::permute(ops::reshape(in[0], {2, 3, 2, 2, 3, 2}), {0, 2, 4, 1, 3, 5}),
                            {2, 6, 12});
      }));
  add("narrow middle", {normal({3, 9, 5})}, one([](In in) { return ops::narrow(in[0], 1, 2, 4); }));
  add("narrow nothing", {normal({3, 9})}, one([](In in) { return ops::narrow(in[0], 1, 9, 0); }));
  add("expand", {normal({3, 1, 5})}, one([](In in) {
        return ops::contiguous(ops::expand(in[0], {2, 3, 4, 5}));
      }));
  add("concat", {normal({2, 3, 5}), normal({2, 1, 5}), normal({2, 4, 5})},
      one([](In in) { return ops::concat(in, 1); }));
  add("concat last of views", {normal({4, 3}), normal({4, 5})}, one([](In in) {
        return ops::concat(std::vector<Tensor>{ops::transpose(in[0], 0, 1),
                                               ops::narrow(ops::transpose(in[1], 0, 1), 0, 1, 3)},
                           -1);
      }));
  add("concat with nothing", {normal({2, 0, 5}), normal({2, 3, 5})},
      one([](In in) { return ops::concat(in, 1); }));
  add("split", {normal({2, 9})}, [](In in) {
    return ops::split(in[0], std::vector<std::int64_t>{2, 3, 4}, 1);
  });
  add("split, one part used", {normal({2, 3, 6})}, one([](In in) {
        return ops::split(in[0], std::vector<std::int64_t>{2, 1, 3}, -1)[1];
      }));
  add("upsample", {batch({2, 3, 3, 5})}, one([](In in) { return ops::upsample_nearest_2x(in[0]); }));
  add("upsample of a view", {normal({2, 3, 5, 4})}, one([](In in) {
        return ops::upsample_nearest_2x(ops::permute(in[0], {0, 3, 1, 2}));
      }));
  for (const DType dtype : {DType::bf16, DType::f16}) {
    add(label("cast to", name_of(dtype)), {fixed(normal({3, 37}))},
        one([dtype](In in) { return ops::cast(in[0], dtype); }));
    add(label("cast from", name_of(dtype)), {normal({3, 37}, dtype)},
        one([](In in) { return ops::cast(in[0], DType::f32); }));
    add(label("copy strided to", name_of(dtype)), {fixed(normal({37, 3}))},
        one([dtype](In in) { return ops::contiguous(ops::cast(ops::transpose(in[0], 0, 1), dtype)); }));
    add(label("embedding", name_of(dtype)), {normal({11, 6}, dtype), ids({3, 5}, 11)},
        one([](In in) { return ops::embedding(in[0], in[1], id_list(15, 11)); }));
  }
  add("embedding", {normal({11, 7}), ids({13}, 11)},
      one([](In in) { return ops::embedding(in[0], in[1], id_list(13, 11)); }));
}

void add_elementwise_rows(std::vector<OpCase>& rows) {
  const auto add = [&](std::string name, std::vector<OpInput> inputs, Forward forward) {
    rows.push_back({.name = std::move(name),
                    .family = Family::elementwise,
                    .inputs = std::move(inputs),
                    .forward = std::move(forward)});
  };
  for (const UnaryRow& row : kUnary) {
    for (const Shape& shape : {Shape{3, 37}, Shape{1}, Shape{0, 4}, Shape{2, 3, 67}}) {
      // Alone, a number where a slope ends flat has nothing to be measured by.
      const OpInput x =
          row.positive_only ? positive(shape) : normal(shape, DType::f32, shape.numel() > 1 ? 3 : 1);
      add(label(row.name, shape), {x}, one([row](In in) { return ops::unary(row.op, in[0], row.a, row.b); }));
    }
    const OpInput x = row.positive_only ? positive({5, 19}) : normal({5, 19}, DType::f32, 3);
    add(label(row.name, "transposed"), {x},
        one([row](In in) { return ops::unary(row.op, ops::transpose(in[0], 0, 1), row.a, row.b); }));
  }
  for (const BinaryRow& row : kBinary) {
    const auto forward = one([row](In in) { return ops::binary(row.op, in[0], in[1]); });
    for (const auto& [a, b] : {std::pair{Shape{3, 37}, Shape{3, 37}},
                               {Shape{2, 5, 7}, Shape{7}},
                               {Shape{2, 1, 7}, Shape{2, 5, 1}},
                               {Shape{5}, Shape{2, 1, 5}},
                               {Shape{}, Shape{4, 3}},
                               {Shape{0, 3}, Shape{3}},
                               {Shape{1}, Shape{1}}}) {
      add(label(row.name, a, b), {normal(a), row.op == BinaryOp::div ? positive(b) : normal(b)}, forward);
    }
    add(label(row.name, "of views"),
        {normal({6, 5}), row.op == BinaryOp::div ? positive({5, 9}) : normal({5, 9})}, one([row](In in) {
          return ops::binary(row.op, ops::transpose(in[0], 0, 1), ops::narrow(in[1], 1, 2, 6));
        }));
  }
  add("narrow thrice and sum", {normal({3, 9, 5})}, one([](In in) {
        return ops::add(ops::add(ops::narrow(in[0], 1, 0, 4), ops::narrow(in[0], 1, 5, 4)),
                        ops::narrow(in[0], 1, 2, 4));
      }));
  add("add_scaled [3, 37]", {normal({3, 37}), normal({37})},
      one([](In in) { return ops::add_scaled(in[0], in[1], -0.3f); }));
  add("x used twice", {normal({4, 9})},
      one([](In in) { return ops::mul(in[0], ops::add(in[0], ops::silu(in[0]))); }));
}

void add_reduce_rows(std::vector<OpCase>& rows) {
  const auto add = [&](std::string name, std::vector<OpInput> inputs, Forward forward) {
    rows.push_back({.name = std::move(name),
                    .family = Family::reduce,
                    .inputs = std::move(inputs),
                    .forward = std::move(forward)});
  };
  for (const ReduceRow& row : kReduce) {
    for (const auto& [shape, axes] : {std::pair{Shape{5, 37}, Shape{1}},
                                      {Shape{37, 5}, Shape{0}},
                                      {Shape{3, 4, 5}, Shape{1}},
                                      {Shape{3, 4, 5}, Shape{0, 2}},
                                      {Shape{2, 3, 5, 7}, Shape{0, 1, 2, 3}},
                                      {Shape{4, 1}, Shape{1}},
                                      {Shape{2, 2, 3, 2, 5, 2}, Shape{3, 5}},
                                      {Shape{1, 1000}, Shape{-1}}}) {
      add(label(row.name, shape, "over", axes), {normal(shape)},
          one([row, axes = axes](In in) { return ops::reduce(row.op, in[0], axes); }));
    }
    add(label(row.name, "keep, of a view"), {normal({5, 4, 7})}, one([row](In in) {
          return ops::reduce(row.op, ops::permute(in[0], {2, 0, 1}), {0, 2}, true);
        }));
  }
  add("sum of nothing", {normal({3, 0})}, one([](In in) { return ops::sum(in[0], {1}); }));
  add("sum_to", {normal({2, 3, 4, 5})}, one([](In in) { return ops::sum_to(in[0], {3, 1, 5}); }));
  for (const Shape& shape : {Shape{3, 37}, Shape{2, 3, 5, 16}, Shape{4, 1}, Shape{7}, Shape{2, 1000}}) {
    add(label("softmax", shape), {normal(shape, DType::f32, 3)},
        one([](In in) { return ops::softmax(in[0]); }));
  }
  // One entry takes all, and its slope is lost in rounding.
  add("softmax large", {normal({3, 9}, DType::f32, 100)}, one([](In in) { return ops::softmax(in[0]); }));
  rows.back().differentiable = false;
  add("softmax transposed", {normal({9, 4})},
      one([](In in) { return ops::softmax(ops::transpose(in[0], 0, 1)); }));
}

void add_update_rows(std::vector<OpCase>& rows) {
  // Each returns copies that were updated, so that the inputs stay what they were.
  const auto fresh = [](const Tensor& x) {
    const Tensor copy = ops::empty_like(x);
    ops::copy_(copy, x);
    return copy;
  };
  const auto add = [&](std::string name, Family family, std::vector<OpInput> inputs, Forward forward) {
    rows.push_back({.name = std::move(name),
                    .family = family,
                    .inputs = std::move(inputs),
                    .forward = std::move(forward),
                    .differentiable = false});
  };
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const std::int64_t step : {1, 7}) {
      add(label("adamw", name_of(dtype), "step", step), Family::update,
          {normal({5, 13}), normal({5, 13}, DType::f32, 0.1f), positive({5, 13}), normal({5, 13})},
          [=](In in) {
            const Tensor master = fresh(in[0]), m = fresh(in[1]), v = fresh(in[2]),
                         parameter = ops::cast(fresh(in[0]), dtype);
            ops::adamw_(parameter, master, m, v, in[3],
                        {.lr = 1e-2f, .weight_decay = 0.1f, .step = step, .gradient_scale = 0.5f});
            return std::vector<Tensor>{parameter, master, m, v};
          });
    }
  }
  add("adamw, the parameter its own master", Family::update,
      {normal({3, 37}), positive({3, 37}), normal({3, 37})}, [=](In in) {
        const Tensor master = fresh(in[0]), m = fresh(in[2]), v = fresh(in[1]);
        ops::adamw_(master, master, m, v, in[2], {.lr = 1e-3f});
        return std::vector<Tensor>{master, m, v};
      });
  add("fill_ of a view", Family::exact, {normal({4, 7})}, [=](In in) {
    const Tensor x = fresh(in[0]);
    ops::fill_(x.narrow(1, 2, 3), 0.5f);
    return std::vector<Tensor>{x};
  });
  add("copy_ into a view", Family::exact, {normal({4, 7}), normal({3, 4})}, [=](In in) {
    const Tensor x = fresh(in[0]);
    ops::copy_(x.narrow(1, 2, 3), in[1].transpose(0, 1));
    return std::vector<Tensor>{x};
  });
  add("add_", Family::update, {normal({4, 7}), normal({4, 7})}, [=](In in) {
    const Tensor x = fresh(in[0]);
    ops::add_(x, in[1], -0.25f);
    return std::vector<Tensor>{x};
  });
  add("lerp_ from bf16", Family::update, {normal({4, 7}), normal({4, 7}, DType::bf16)}, [=](In in) {
    const Tensor x = fresh(in[0]);
    ops::lerp_(x, in[1], 0.99);
    return std::vector<Tensor>{x};
  });
}

}  // namespace danceflux::test
