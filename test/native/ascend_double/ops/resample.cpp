// Resampling of images [B, C, h, w], tagged NCHW.
#include "ascend_double/ops/dense.h"

namespace ascend_double {
namespace {

void check_images(Plan& plan, const Operand& in, const Operand& out) {
  plan.require_image(in, "self");
  plan.require_image(out, "out");
  plan.require(in.format == ACL_FORMAT_NCHW && out.format == ACL_FORMAT_NCHW, "the double has NCHW only");
  plan.require_type(out, "out", in.dtype);
}

Dims sized(Plan& plan, const Operand& in, Ints size) {
  const Dims& wanted = plan.ints(size, "outputSize");
  plan.require(wanted.size() == 2 && wanted[0] > 0 && wanted[1] > 0,
               "outputSize: expected two positive numbers");
  return {in.size(0), in.size(1), wanted[0], wanted[1]};
}

/// Which pixel of `from` pixel i of `to` shows.
std::int64_t nearest(std::int64_t i, std::int64_t from, std::int64_t to, bool exact) {
  const float scale = static_cast<float>(from) / static_cast<float>(to);
  const float at = exact ? (static_cast<float>(i) + 0.5f) * scale : static_cast<float>(i) * scale;
  return std::min(from - 1, static_cast<std::int64_t>(at));
}

void plan_nearest(Plan& plan, Tensor x, Ints size, Tensor y, bool exact) {
  const Operand in = plan.in(x, "self", kFloats, 4, 4), out = plan.out(y, "out", kFloats, 4, 4);
  check_images(plan, in, out);
  plan.require_shape(out, "out", sized(plan, in, size));
  plan.compute = [=](const Launch& launch) {
    const std::int64_t h = in.size(2), w = in.size(3), oh = out.size(2), ow = out.size(3);
    const Dense<float> values = load<float>(launch, in);
    Dense<float> result(out.count());
    for (std::int64_t plane = 0; plane < in.size(0) * in.size(1); ++plane)
      for (std::int64_t i = 0; i < oh; ++i)
        for (std::int64_t j = 0; j < ow; ++j)
          result[(plane * oh + i) * ow + j] =
              values[(plane * h + nearest(i, h, oh, exact)) * w + nearest(j, w, ow, exact)];
    store(launch, out, result);
  };
}

}  // namespace

OP(cv, UpsampleNearest2d, Tensor x, Ints size, Out y) { plan_nearest(plan, x, size, y, false); }
OP(cv, UpsampleNearest2dV2, Tensor x, Ints size, float /*scale_h*/, float /*scale_w*/, Out y) {
  plan_nearest(plan, x, size, y, false);
}
OP(cv, UpsampleNearestExact2d, Tensor x, Ints size, double /*scale_h*/, double /*scale_w*/, Out y) {
  plan_nearest(plan, x, size, y, true);
}

OP(cv, UpsampleNearest2dBackward, Tensor gradient, Ints output_size, Ints input_size, double /*scale_h*/,
   double /*scale_w*/, Out dx) {
  const Operand dy = plan.in(gradient, "gradOut", kFloats, 4, 4),
                out = plan.out(dx, "gradInput", kFloats, 4, 4);
  check_images(plan, dy, out);
  const Dims& shape = plan.ints(input_size, "inputSize");
  plan.require(shape.size() == 4, "inputSize: expected 4 numbers");
  plan.require_shape(out, "gradInput", shape);
  plan.require_shape(dy, "gradOut", sized(plan, out, output_size));
  const bool fixed = plan.deterministic;
  plan.compute = [=](const Launch& launch) {
    const std::int64_t h = out.size(2), w = out.size(3), oh = dy.size(2), ow = dy.size(3), pixels = oh * ow;
    const Dense<float> slopes = load<float>(launch, dy);
    Dense<float> result(out.count());
    std::fill(result.data(), result.data() + result.count(), 0.0f);
    const std::int64_t start =
        fixed ? 0 : static_cast<std::int64_t>(launch.chance % static_cast<std::uint64_t>(pixels));
    for (std::int64_t plane = 0; plane < out.size(0) * out.size(1); ++plane)
      for (std::int64_t n = 0; n < pixels; ++n) {
        const std::int64_t at = (n + start) % pixels;
        result[(plane * h + nearest(at / ow, h, oh, false)) * w + nearest(at % ow, w, ow, false)] +=
            slopes[plane * pixels + at];
      }
    store(launch, out, result);
  };
}

// ---- filters: bilinear and bicubic, with antialiasing (a = -0.5) or without (a = -0.75)
// ------------------------------------------
namespace {

struct Filter {
  bool cubic, antialias, align;
};

double kernel(double x, const Filter& filter) {
  x = std::abs(x);
  if (!filter.cubic) return x < 1 ? 1 - x : 0;
  const double a = filter.antialias ? -0.5 : -0.75;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

struct Tap {
  std::int64_t from;
  float weight;
};

/// For each pixel of the result, which pixels it is made of.
std::vector<std::vector<Tap>> taps(std::int64_t from, std::int64_t to, double given, const Filter& filter) {
  double scale = given > 0 ? 1 / given : static_cast<double>(from) / static_cast<double>(to);
  if (filter.align) scale = to > 1 ? static_cast<double>(from - 1) / static_cast<double>(to - 1) : 0;
  const double stretch = filter.antialias ? std::max(scale, 1.0) : 1,
               reach = (filter.cubic ? 2 : 1) * stretch;
  std::vector<std::vector<Tap>> all(static_cast<std::size_t>(to));
  for (std::int64_t i = 0; i < to; ++i) {
    double center =
        filter.align ? static_cast<double>(i) * scale : (static_cast<double>(i) + 0.5) * scale - 0.5;
    if (!filter.cubic && !filter.antialias) center = std::max(center, 0.0);
    double total = 0;
    std::vector<std::pair<std::int64_t, double>> found;
    for (auto at = static_cast<std::int64_t>(std::ceil(center - reach));
         static_cast<double>(at) <= center + reach; ++at) {
      const bool outside = at < 0 || at >= from;
      if (outside && filter.antialias) continue;
      const double weight = kernel((static_cast<double>(at) - center) / stretch, filter);
      if (weight == 0) continue;
      found.emplace_back(std::clamp<std::int64_t>(at, 0, from - 1), weight);
      total += weight;
    }
    for (const auto& [at, weight] : found)
      all[static_cast<std::size_t>(i)].push_back({at, static_cast<float>(weight / total)});
  }
  return all;
}

void plan_filter(Plan& plan, Tensor x, Ints size, double scale_h, double scale_w, Tensor y,
                 const Filter& filter) {
  const Operand in = plan.in(x, "self", kFloats, 4, 4), out = plan.out(y, "out", kFloats, 4, 4);
  check_images(plan, in, out);
  plan.require_shape(out, "out", sized(plan, in, size));
  plan.require(scale_h >= 0 && scale_w >= 0, "scales: expected no negative number");
  const std::int64_t h = in.size(2), w = in.size(3), oh = out.size(2), ow = out.size(3);
  const auto rows = taps(h, oh, scale_h, filter), columns = taps(w, ow, scale_w, filter);
  plan.compute = [=](const Launch& launch) {
    const Dense<float> values = load<float>(launch, in);
    Dense<float> result(out.count()), wide(h * ow);
    for (std::int64_t plane = 0; plane < in.size(0) * in.size(1); ++plane) {
      for (std::int64_t i = 0; i < h; ++i)
        for (std::int64_t j = 0; j < ow; ++j) {
          float total = 0;
          for (const Tap& tap : columns[static_cast<std::size_t>(j)])
            total += tap.weight * values[(plane * h + i) * w + tap.from];
          wide[i * ow + j] = total;
        }
      for (std::int64_t i = 0; i < oh; ++i)
        for (std::int64_t j = 0; j < ow; ++j) {
          float total = 0;
          for (const Tap& tap : rows[static_cast<std::size_t>(i)])
            total += tap.weight * wide[tap.from * ow + j];
          result[(plane * oh + i) * ow + j] = total;
        }
    }
    store(launch, out, result);
  };
}

}  // namespace

#define FILTER(name, cubic, antialias)                                                   \
  OP(cv, name, Tensor x, Ints size, bool align, double scale_h, double scale_w, Out y) { \
    plan_filter(plan, x, size, scale_h, scale_w, y, {cubic, antialias, align});          \
  }
FILTER(UpsampleBilinear2d, false, false)
FILTER(UpsampleBilinear2dAA, false, true)
FILTER(UpsampleBicubic2d, true, false)
FILTER(UpsampleBicubic2dAA, true, true)

}  // namespace ascend_double
