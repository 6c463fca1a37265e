// Rope, the fused shortcuts and AdamW of the CPU backend; and that no row's bits depend on threads or on the
// batch around it.
//
// Legend: B batch, L tokens, D width, H heads, K head width.
#include <algorithm>

#include "autograd/tape.h"
#include "cpu_device.h"
#include "ops/ops.h"

using namespace danceflux;
using namespace danceflux::test;

namespace {

constexpr double kRelative = 2e-6;
using Doubles = std::vector<double>;

struct Angles {
  Tensor cos, sin;
};
Angles angles_of(Backend& device, std::int64_t tokens, std::int64_t width, Layout layout = Layout::dense) {
  Angles angles{place(device, {tokens, width / 2}, layout).view,
                place(device, {tokens, width / 2}, layout).view};
  Numbers a(21), b(21);
  for_offsets(angles.cos,
              [&](std::int64_t offset) { angles.cos.data<float>()[offset] = std::cos(a.between(-9, 9)); });
  for_offsets(angles.sin,
              [&](std::int64_t offset) { angles.sin.data<float>()[offset] = std::sin(b.between(-9, 9)); });
  return angles;
}

/// Turns x [B, L, H, K] in place by the angles of its token.
void turn(Doubles& x, const Shape& shape, const Angles& angles, bool inverse) {
  const Doubles cos = values_of(angles.cos), sin = values_of(angles.sin);
  const auto width = static_cast<std::size_t>(shape[3]), heads = static_cast<std::size_t>(shape[2]),
             tokens = static_cast<std::size_t>(shape[1]);
  for (std::size_t i = 0; i + 1 < x.size(); i += 2) {
    const std::size_t at = i / width / heads % tokens * (width / 2) + i % width / 2;
    const double c = cos[at], s = inverse ? -sin[at] : sin[at], x0 = x[i], x1 = x[i + 1];
    x[i] = x0 * c - x1 * s;
    x[i + 1] = x1 * c + x0 * s;
  }
}

void check_rope(Backend& device, const Shape& shape, Layout layout) {
  const Tensor x = normal_input(device, shape, 1, layout);
  const Angles angles =
      angles_of(device, shape[1], shape[3], layout == Layout::repeated ? Layout::dense : layout);
  for (bool inverse : {false, true}) {
    const Placed out = place(device, shape, layout == Layout::repeated ? Layout::dense : layout);
    device.rope(out.view, x, angles.cos, angles.sin, inverse);
    Doubles wanted = values_of(x);
    turn(wanted, shape, angles, inverse);
    check_close(out.view, wanted, 0, kRelative, "rope");
    check_margins(out);
  }
}

void check_qk_norm_rope(Backend& device, const Shape& shape, Layout layout) {
  const Tensor x = normal_input(device, shape, 1, layout), dout = normal_input(device, shape, 2, layout),
               weight = normal_input(device, {shape[3]}, 3);
  const Angles angles = angles_of(device, shape[1], shape[3]);
  const Layout out_layout = layout == Layout::repeated ? Layout::dense : layout;
  const Placed out = place(device, shape, out_layout), dx = place(device, shape, out_layout),
               dweight = place(device, {shape[3]}, Layout::dense);
  const auto n = static_cast<std::size_t>(shape[3]);
  const std::int64_t rows = shape[0] * shape[1] * shape[2];
  const Tensor rstd = device.empty({rows});
  CHECK(!device.qk_norm_rope(out.view, rstd, x, weight, angles.cos, angles.sin, 1e-6f));
  CHECK(!device.qk_norm_rope_backward(dx.view, dweight.view, dout, x, rstd, weight, angles.cos, angles.sin));
  const Tensor dx_alone = device.empty(shape);
  CHECK(!device.qk_norm_rope_backward(dx_alone, {}, dout, x, rstd, weight, angles.cos, angles.sin));

  const Doubles in = values_of(x), w = values_of(weight);
  Doubles wanted(in.size()), wanted_dx(in.size()), wanted_dw(n), g = values_of(dout);
  turn(g, shape, angles, true);
  for (std::size_t start = 0; start < in.size(); start += n) {
    double squares = 0, dot = 0;
    for (std::size_t j = 0; j < n; ++j) squares += in[start + j] * in[start + j];
    const double r = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-6);
    for (std::size_t j = 0; j < n; ++j) {
      wanted[start + j] = in[start + j] * r * w[j];
      wanted_dw[j] += g[start + j] * in[start + j] * r;
      dot += g[start + j] * w[j] * in[start + j] * r / static_cast<double>(n);
    }
    for (std::size_t j = 0; j < n; ++j)
      wanted_dx[start + j] = r * (g[start + j] * w[j] - in[start + j] * r * dot);
  }
  turn(wanted, shape, angles, false);
  check_close(out.view, wanted, 0, 2 * kRelative, "qk_norm_rope");
  check_close(dx.view, wanted_dx, kRelative, 4 * kRelative, "qk_norm_rope backward");
  check_close(dx_alone, values_of(dx.view), 0, 0, "qk_norm_rope backward without dweight");
  check_close(dweight.view, wanted_dw, 0, kRelative * (4 + std::sqrt(static_cast<double>(rows))), "dweight");
  for (const Placed* placed : {&out, &dx, &dweight}) check_margins(*placed);
}

}  // namespace

TEST("cpu rope: both ways, views of a fused projection too") {
  on_every_isa([](Backend& device) {
    for (Layout layout : kInputLayouts) {
      for (const Shape& shape : {Shape{1, 1, 1, 2}, Shape{2, 3, 2, 6}, Shape{2, 5, 3, 32}, Shape{1, 0, 3, 4},
                                 Shape{1, 2, 1, 1100}, Shape{3, 70, 4, 64}})
        check_rope(device, shape, layout);
    }
  });
}

TEST("cpu qk_norm_rope: forward and backward") {
  on_every_isa([](Backend& device) {
    for (Layout layout : kInputLayouts) {
      for (const Shape& shape : {Shape{1, 1, 1, 2}, Shape{2, 3, 2, 6}, Shape{2, 37, 3, 32}, Shape{1, 0, 3, 4},
                                 Shape{2, 3, 2, 512}, Shape{3, 70, 4, 70}})
        check_qk_norm_rope(device, shape, layout);
    }
  });
}

TEST("cpu qk_norm_rope: a head too wide is declined with the reason") {
  const auto device = open_device("");
  const Tensor x = device->empty({1, 1, 1, 1024}), table = device->empty({1, 512});
  const Declined declined =
      device->qk_norm_rope(x, device->empty({1}), x, device->empty({1024}), table, table, 1e-6f);
  CHECK(declined.has_value());
  CHECK_EQ(*declined, std::string("head width 1024 is more than 512"));
}

// ---- modulated norm and gated residual -------------------------------------------------------------------
namespace {

struct Stream {
  Shape shape;  // [B, L, D]
  Layout layout;
  std::size_t batch() const { return static_cast<std::size_t>(shape[0]); }
  std::size_t tokens() const { return static_cast<std::size_t>(shape[1]); }
  std::size_t width() const { return static_cast<std::size_t>(shape[2]); }
  Shape vector() const { return {shape[0], shape[2]}; }
  double sums() const { return kRelative * (4 + std::sqrt(static_cast<double>(tokens()))); }
};

/// A [B, D] slice of a wider projection, as modulation vectors are.
Tensor modulation(Backend& device, const Stream& s, std::uint64_t seed) {
  return normal_input(device, {s.shape[0], 3 * s.shape[2]}, seed).narrow(1, s.shape[2], s.shape[2]);
}

void check_modulated_norm(Backend& device, const Stream& s) {
  const Tensor x = normal_input(device, s.shape, 1, s.layout),
               dy = normal_input(device, s.shape, 2, s.layout);
  const Tensor scale = modulation(device, s, 3), shift = modulation(device, s, 4);
  const Tensor mean = device.empty({s.shape[0] * s.shape[1]}), rstd = device.empty({s.shape[0] * s.shape[1]});
  const Placed y = place(device, s.shape, s.layout), dx = place(device, s.shape, s.layout);
  const Placed dscale = place(device, s.vector(), Layout::dense),
               dshift = place(device, s.vector(), Layout::narrowed);
  CHECK(!device.modulated_norm(y.view, mean, rstd, x, scale, shift, 1e-6f));
  CHECK(!device.modulated_norm_backward(dx.view, dscale.view, dshift.view, dy, x, mean, rstd, scale));

  const Doubles in = values_of(x), d = values_of(dy), scales = values_of(scale), shifts = values_of(shift);
  const std::size_t n = s.width();
  Doubles wanted(in.size()), wanted_dx(in.size()), wanted_dscale(scales.size()), wanted_dshift(scales.size());
  for (std::size_t row = 0; row < s.batch() * s.tokens(); ++row) {
    const double *a = &in[row * n], *g = &d[row * n], *k = &scales[row / s.tokens() * n];
    double m = 0, squares = 0, g_mean = 0, g_x_mean = 0;
    for (std::size_t j = 0; j < n; ++j) m += a[j] / static_cast<double>(n);
    for (std::size_t j = 0; j < n; ++j) squares += (a[j] - m) * (a[j] - m) / static_cast<double>(n);
    const double r = 1 / std::sqrt(squares + 1e-6);
    for (std::size_t j = 0; j < n; ++j) {
      const std::size_t column = row / s.tokens() * n + j;
      wanted[row * n + j] = (a[j] - m) * r * (1 + k[j]) + shifts[column];
      wanted_dscale[column] += g[j] * (a[j] - m) * r;
      wanted_dshift[column] += g[j];
      g_mean += g[j] * (1 + k[j]) / static_cast<double>(n);
      g_x_mean += g[j] * (1 + k[j]) * (a[j] - m) * r / static_cast<double>(n);
    }
    for (std::size_t j = 0; j < n; ++j)
      wanted_dx[row * n + j] = r * (g[j] * (1 + k[j]) - g_mean - (a[j] - m) * r * g_x_mean);
  }
  check_close(y.view, wanted, kRelative, 2 * kRelative, "modulated_norm");
  check_close(dx.view, wanted_dx, kRelative, 4 * kRelative, "modulated_norm backward");
  check_close(dscale.view, wanted_dscale, 0, s.sums(), "dscale");
  check_close(dshift.view, wanted_dshift, 0, s.sums(), "dshift");
  for (const Placed* placed : {&y, &dx, &dscale, &dshift}) check_margins(*placed);
}

void check_gated_residual(Backend& device, const Stream& s) {
  const Tensor x = normal_input(device, s.shape, 1, s.layout), y = normal_input(device, s.shape, 2, s.layout);
  const Tensor gate = modulation(device, s, 3), dout = normal_input(device, s.shape, 4, s.layout);
  const Placed out = place(device, s.shape, s.layout), dy = place(device, s.shape, s.layout),
               dgate = place(device, s.vector(), Layout::dense);
  CHECK(!device.gated_residual(out.view, x, gate, y));
  CHECK(!device.gated_residual_backward(dgate.view, dy.view, dout, gate, y));
  const Doubles a = values_of(x), b = values_of(y), g = values_of(gate), d = values_of(dout);
  Doubles wanted(a.size()), wanted_dy(a.size()), wanted_dgate(g.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    const std::size_t column = i / s.width() / s.tokens() * s.width() + i % s.width();
    wanted[i] = a[i] + g[column] * b[i];
    wanted_dy[i] = g[column] * d[i];
    wanted_dgate[column] += d[i] * b[i];
  }
  check_close(out.view, wanted, 0, kRelative, "gated_residual");
  check_close(dy.view, wanted_dy, kRelative, 0, "gated_residual backward");
  check_close(dgate.view, wanted_dgate, 0, s.sums(), "dgate");
  for (const Placed* placed : {&out, &dy, &dgate}) check_margins(*placed);
}

}  // namespace

TEST("cpu modulated_norm and gated_residual: forward and backward") {
  on_every_isa([](Backend& device) {
    for (Layout layout : kOutputLayouts) {
      for (const Shape& shape : {Shape{1, 1, 2}, Shape{2, 3, 19}, Shape{3, 70, 64}, Shape{2, 0, 8},
                                 Shape{0, 3, 8}, Shape{1, 33, 1500}}) {
        check_modulated_norm(device, {shape, layout});
        check_gated_residual(device, {shape, layout});
      }
    }
  });
}

TEST("cpu fused shortcuts give the bits of their composition") {
  on_every_isa([](Backend& device) {
    const Shape shape{2, 9, 45}, vector{2, 1, 45};
    const Tensor x = normal_input(device, shape, 1), scale = normal_input(device, vector, 2),
                 shift = normal_input(device, vector, 3);
    const Tensor mean = device.empty({18}), rstd = device.empty({18}), fused = device.empty(shape),
                 composed = device.empty(shape);
    CHECK(!device.modulated_norm(fused, mean, rstd, x, scale.view({2, 45}), shift.view({2, 45}), 1e-6f));
    const Tensor one_plus = device.empty(vector);
    device.norm(composed, mean, rstd, x, {}, {}, {});
    device.unary(UnaryOp::affine, one_plus, scale, 1, 1);
    device.binary(BinaryOp::mul, composed, composed, one_plus.expand(shape), 1);
    device.binary(BinaryOp::add, composed, composed, shift.expand(shape), 1);
    CHECK(same_bits(fused, composed));

    CHECK(!device.gated_residual(fused, x, scale.view({2, 45}), x));
    device.binary(BinaryOp::mul, composed, x, scale.expand(shape), 1);
    device.binary(BinaryOp::add, composed, x, composed, 1);
    CHECK(same_bits(fused, composed));

    const Tensor q = normal_input(device, {2, 5, 3, 22}, 5), weight = normal_input(device, {22}, 6),
                 turned = device.empty(q.shape()), apart = device.empty(q.shape());
    const Angles angles = angles_of(device, 5, 22);
    const Tensor q_rstd = device.empty({30});
    CHECK(!device.qk_norm_rope(turned, q_rstd, q, weight, angles.cos, angles.sin, 1e-6f));
    device.norm(apart, {}, q_rstd, q, weight, {}, {NormKind::rms, 1e-6f, 1});
    device.rope(apart, apart, angles.cos, angles.sin, false);
    CHECK(same_bits(turned, apart));

    const Tensor image = normal_input(device, {2, 6, 7, 5}, 7), channel = normal_input(device, {6}, 8),
                 smooth = device.empty(image.shape()), plain = device.empty(image.shape());
    const Tensor group_mean = device.empty({4}), group_rstd = device.empty({4});
    CHECK(!device.group_norm_silu(smooth, group_mean, group_rstd, image, channel, channel,
                                  {NormKind::group, 1e-5f, 2}));
    device.norm(plain, group_mean, group_rstd, image, channel, channel, {NormKind::group, 1e-5f, 2});
    device.unary(UnaryOp::silu, plain, plain, 0, 0);
    CHECK(same_bits(smooth, plain));
  });
}

namespace {

/// A step, its log probability as drawn and as asked for, and the gradients of the latter.
template <class Draw, class Density>
std::vector<Tensor> flow_results(Backend& device, const Shape& shape, Draw draw, Density density) {
  const Tensor x = normal_input(device, shape, 1), v = normal_input(device, shape, 2),
               noise = normal_input(device, shape, 3), numbers = normal_input(device, {shape[0], 5}, 4);
  const auto [next, log_prob] = draw(x, v, noise, numbers);
  Tape tape;
  tape.watch(x);
  tape.watch(v);
  const Tensor again = density(x, v, next, numbers);
  tape.backward(again, normal_input(device, {shape[0]}, 5));
  return {next, log_prob, again, draw(x, v, Tensor(), numbers).next, tape.gradient(x), tape.gradient(v)};
}
std::vector<Tensor> fused_flow(Backend& device, const Shape& shape) {
  return flow_results(device, shape, ops::flow_step, ops::flow_log_prob);
}

}  // namespace

TEST("cpu flow steps: the bits of their composition, drawn and asked for, forward and backward") {
  on_every_isa([](Backend& device) {
    for (const Shape& shape :
         {Shape{1, 1}, Shape{2, 5, 7}, Shape{3, 4097}, Shape{17, 130}, Shape{2, 400, 64}}) {
      const auto fused = fused_flow(device, shape),
                 parts = flow_results(device, shape, ops::composed::flow_step, ops::composed::flow_log_prob);
      for (std::size_t i = 0; i < fused.size(); ++i) CHECK(same_bits(fused[i], parts[i]));
      CHECK(same_bits(fused[1], fused[2]));
    }
  });
}

TEST("cpu flow steps: the same bits on any number of threads") {
  check_thread_counts([](Backend& device) { return fused_flow(device, {2, 800, 64}); });
}

// ---- AdamW -----------------------------------------------------------------------------------------------
TEST("cpu adamw: five steps, parameters in every dtype") {
  on_every_isa([](Backend& device) {
    for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      for (std::int64_t n : {0, 1, 13, 16, 50000}) {
        const Tensor master = normal_input(device, {n}, 1), m = device.empty({n}), v = device.empty({n});
        const Tensor parameter = dtype == DType::f32 ? master : device.empty({n}, dtype);
        device.fill(m, 0);
        device.fill(v, 0);
        Doubles w = values_of(master), first(w.size()), second(w.size());
        AdamWArgs args;
        args.lr = 0.01, args.weight_decay = 0.1, args.gradient_scale = 0.5f;
        for (args.step = 1; args.step <= 5; ++args.step) {
          const Tensor gradient = normal_input(device, {n}, static_cast<std::uint64_t>(args.step + 10));
          device.adamw(parameter, master, m, v, gradient, args);
          const Doubles g = values_of(gradient);
          for (std::size_t i = 0; i < w.size(); ++i) {
            w[i] *= 1 - args.lr * args.weight_decay;
            first[i] = 0.9 * first[i] + 0.1 * g[i] * 0.5;
            second[i] = 0.999 * second[i] + 0.001 * g[i] * g[i] * 0.25;
            const double t = static_cast<double>(args.step),
                         root = std::sqrt(second[i]) / std::sqrt(1 - std::pow(0.999, t)) + 1e-8;
            w[i] -= 0.01 / (1 - std::pow(0.9, t)) * first[i] / root;
          }
        }
        check_close(master, w, 1e-6, 1e-7, "master");
        check_close(m, first, 1e-6, 1e-7, "m");
        check_close(v, second, 2e-6, 1e-12, "v");
        for (std::int64_t i = 0; i < n && dtype != DType::f32; ++i) {
          const float value = master.data<float>()[i];
          CHECK_EQ(parameter.data<std::uint16_t>()[i],
                   dtype == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value));
        }
      }
    }
  });
}

// ---- what no result may depend on ------------------------------------------------------------------------
namespace {

struct Inputs {
  Tensor x, other, vector, weight, heads, head_weight, image, channel;
  Angles angles;
};
constexpr std::int64_t kTokens = 67, kWidth = 136;

/// The first `batch` entries of one fixed batch of 12.
Inputs inputs_of(Backend& device, std::int64_t batch) {
  return {normal_input(device, {12, kTokens, kWidth}, 1).narrow(0, 0, batch),
          normal_input(device, {12, kTokens, kWidth}, 2).narrow(0, 0, batch),
          normal_input(device, {12, kWidth}, 3).narrow(0, 0, batch),
          normal_input(device, {kWidth}, 4),
          normal_input(device, {12, kTokens, 4, 34}, 5).narrow(0, 0, batch),
          normal_input(device, {34}, 6),
          normal_input(device, {12, 8, 21, 33}, 7).narrow(0, 0, batch),
          normal_input(device, {8}, 8),
          angles_of(device, kTokens, 34)};
}

/// Everything whose first axis is the batch.
std::vector<Tensor> per_row_results(Backend& device, const Inputs& in) {
  const Shape shape = in.x.shape(), vector = in.vector.shape(), heads = in.heads.shape(),
              image = in.image.shape();
  const std::int64_t batch = shape[0];
  std::vector<Tensor> all;
  const auto fresh = [&](const Shape& size) { return all.emplace_back(device.empty(size)); };
  const Tensor rows_mean = fresh({batch, kTokens}), rows_rstd = fresh({batch, kTokens}),
               head_rstd = fresh({batch, kTokens * 4});
  const Tensor group_mean = fresh({batch, 4}), group_rstd = fresh({batch, 4}), probability = fresh(shape);
  const NormArgs layer{}, rms{NormKind::rms, 1e-6f, 1}, group{NormKind::group, 1e-5f, 4};
  device.softmax(probability, in.x);
  device.softmax_backward(fresh(shape), probability, in.other);
  device.norm(fresh(shape), {}, rows_rstd, in.x, in.weight, {}, rms);
  device.norm(fresh(shape), rows_mean, rows_rstd, in.x, in.weight, in.weight, layer);
  device.norm_backward(fresh(shape), {}, {}, in.other, in.x, rows_mean, rows_rstd, in.weight, layer);
  device.norm(fresh(image), group_mean, group_rstd, in.image, in.channel, in.channel, group);
  device.norm_backward(fresh(image), {}, {}, in.image, in.image, group_mean, group_rstd, in.channel, group);
  (void)device.modulated_norm(fresh(shape), rows_mean, rows_rstd, in.x, in.vector, in.vector, 1e-6f);
  (void)device.modulated_norm_backward(fresh(shape), fresh(vector), fresh(vector), in.other, in.x, rows_mean,
                                       rows_rstd, in.vector);
  (void)device.gated_residual(fresh(shape), in.x, in.vector, in.other);
  (void)device.gated_residual_backward(fresh(vector), fresh(shape), in.x, in.vector, in.other);
  (void)device.qk_norm_rope(fresh(heads), head_rstd, in.heads, in.head_weight, in.angles.cos, in.angles.sin,
                            1e-6f);
  (void)device.qk_norm_rope_backward(fresh(heads), {}, in.heads, in.heads, head_rstd, in.head_weight,
                                     in.angles.cos, in.angles.sin);
  device.unary(UnaryOp::gelu_tanh, fresh(shape), in.x, 0, 0);
  device.reduce(ReduceOp::sum, fresh({batch, 1, kWidth}), in.x);
  device.reduce(ReduceOp::sum_of_squares, fresh({batch, 1, 1}), in.x);
  device.reduce(ReduceOp::mean, fresh({batch, kTokens, 1}), in.x);
  return all;
}

}  // namespace

TEST("cpu rows: a batch entry's bits do not depend on the batch size") {
  on_every_isa([](Backend& device) {
    const std::vector<Tensor> twelve = per_row_results(device, inputs_of(device, 12));
    for (std::int64_t batch : {1, 4, 5}) {
      const std::vector<Tensor> few = per_row_results(device, inputs_of(device, batch));
      for (std::size_t i = 0; i < few.size(); ++i) {
        if (!same_bits(few[i], twelve[i].narrow(0, 0, batch)))
          fail_at(__FILE__, __LINE__, "result ", i, " differs between batches of 12 and ", batch);
      }
    }
  });
}

TEST("cpu rows: the same bits on any number of threads") {
  check_thread_counts([](Backend& device) {
    const Inputs in = inputs_of(device, 12);
    std::vector<Tensor> all = per_row_results(device, in);
    const auto fresh = [&](const Shape& size) { return all.emplace_back(device.empty(size)); };
    const Tensor mean = device.empty({12 * kTokens}), rstd = device.empty({12 * kTokens}),
                 dx = device.empty(in.x.shape());
    device.norm(dx, mean, rstd, in.x, in.weight, in.weight, {});
    device.norm_backward(dx, fresh({kWidth}), fresh({kWidth}), in.other, in.x, mean, rstd, in.weight, {});
    const Tensor group_mean = device.empty({48}), group_rstd = device.empty({48}),
                 dimage = device.empty(in.image.shape());
    const NormArgs group{NormKind::group, 1e-5f, 4};
    device.norm(dimage, group_mean, group_rstd, in.image, in.channel, in.channel, group);
    device.norm_backward(dimage, fresh({8}), fresh({8}), in.image, in.image, group_mean, group_rstd,
                         in.channel, group);
    const Tensor head_rstd = device.empty({12 * kTokens * 4}), dheads = device.empty(in.heads.shape());
    (void)device.qk_norm_rope(dheads, head_rstd, in.heads, in.head_weight, in.angles.cos, in.angles.sin,
                              1e-6f);
    (void)device.qk_norm_rope_backward(dheads, fresh({34}), in.heads, in.heads, head_rstd, in.head_weight,
                                       in.angles.cos, in.angles.sin);
    device.reduce(ReduceOp::sum, fresh({1, 1, kWidth}), in.x);
    device.reduce(ReduceOp::sum, fresh({1, 1, 1}), in.x);
    device.reduce(ReduceOp::max, fresh({1, kTokens, 1}), in.x);
    AdamWArgs args;
    args.lr = 0.1;
    const Tensor m = fresh(in.x.shape()), v = fresh(in.x.shape()), master = fresh(in.x.shape());
    device.fill(m, 0.25f);
    device.fill(v, 0.5f);
    device.copy(master, in.x);
    device.adamw(master, master, m, v, in.other, args);
    return all;
  });
}
