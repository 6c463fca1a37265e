// The rows of the table. B batch, L tokens, D width, H heads, K head width, M/N/K matrix sizes, C channels.
#include "op_cases.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "op_rows.h"

namespace danceflux::test {
namespace {

struct Tolerance {
  double forward, gradient;
};

/// In the order of Family. One f32 rounding is 6e-8; sums of n terms add up sqrt(n) of them, and a gradient
/// is a chain of two or three such ops.
constexpr Tolerance kTolerances[] = {
    {0, 2e-6},     // exact: moves only; its gradients may add
    {2e-6, 4e-6},  // elementwise: a few units in the last place of a polynomial
    {2e-6, 4e-6},  // reduce
    {1e-5, 2e-5},  // matmul
    {1e-5, 4e-5},  // norm: a difference of nearly equal numbers comes in
    {2e-5, 5e-5},  // attention: two products around a softmax
    {1e-5, 2e-5},  // conv
    {2e-6, 0},     // update
};

/// Of bf16 activations, whose last place is 2^-8: one rounding of the result; two where an op has one inside
/// (probabilities of attention) or a row two ops; a gradient is a chain of some more, each result rounded.
constexpr Tolerance kBf16Tolerances[] = {
    {0, 0x1p-7},       // exact
    {0x1p-7, 0x1p-6},  // elementwise
    {0x1p-7, 0x1p-5},  // reduce: a softmax's slope is a difference of nearly equal terms, one of them rounded
    {0x1p-6, 0x1p-6},  // matmul
    {0x1p-6, 0x1p-5},  // norm
    {0x1p-6, 0x1p-5},  // attention
    {0x1p-7, 0x1p-6},  // conv
    {0, 0},            // update: not of activations
};

std::uint64_t seed_of(const std::string& text) {
  std::uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}

/// splitmix64
std::uint64_t next_random(std::uint64_t& state) {
  std::uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

double uniform(std::uint64_t& state) {
  return (static_cast<double>(next_random(state) >> 11) + 0.5) * 0x1p-53;
}

Tensor make_input(Backend& device, const OpInput& input, const std::string& seed, DType activations) {
  const std::int64_t count = input.shape.numel();
  if (input.fill == Fill::ids) return ops::from_host(device, input.shape, id_list(count, input.bound));
  std::vector<float> values;
  if (input.fill == Fill::normal) {
    values = normal_stream(seed, count);
    for (float& value : values) value = input.scale * value + input.shift;
  } else {
    std::uint64_t state = seed_of(seed);
    for (std::int64_t i = 0; i < count; ++i) values.push_back(static_cast<float>(0.1 + 2 * uniform(state)));
  }
  if (activations != DType::bf16 || input.vector)
    return ops::from_host(device, input.shape, values, input.dtype);
  for (float& value : values) value = bf16_to_f32(f32_to_bf16(value));
  return ops::from_host(device, input.shape, values, device.activation_dtype(DType::bf16));
}

}  // namespace

std::vector<float> normal_stream(const std::string& seed, std::int64_t count) {
  std::uint64_t state = seed_of(seed);
  std::vector<float> values;
  while (static_cast<std::int64_t>(values.size()) < count) {
    const double radius = std::sqrt(-2 * std::log(uniform(state))),
                 angle = 2 * std::numbers::pi * uniform(state);
    values.push_back(static_cast<float>(radius * std::cos(angle)));
  }
  return values;
}

std::vector<std::int32_t> id_list(std::int64_t count, std::int32_t bound) {
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < count; ++i) ids.push_back(static_cast<std::int32_t>((i * 7 + i / 3) % bound));
  return ids;
}

std::vector<Tensor> make_inputs(Backend& device, const OpCase& row) {
  std::vector<Tensor> inputs;
  for (std::size_t i = 0; i < row.inputs.size(); ++i) {
    inputs.push_back(make_input(device, row.inputs[i], row.name + "/" + std::to_string(i), row.activations));
  }
  return inputs;
}

static const Tolerance& tolerance(Family family, DType activations) {
  return (activations == DType::bf16 ? kBf16Tolerances : kTolerances)[static_cast<std::size_t>(family)];
}
double forward_tolerance(Family family, DType activations) { return tolerance(family, activations).forward; }
double gradient_tolerance(Family family, DType activations) {
  return tolerance(family, activations).gradient;
}

double rounding_of(DType dtype) { return dtype == DType::bf16 ? 0x1p-7 : dtype == DType::f16 ? 0x1p-10 : 0; }

double error_of(std::span<const double> got, std::span<const double> wanted) {
  if (got.size() != wanted.size()) return std::numeric_limits<double>::infinity();
  double squares = 0;
  for (const double value : wanted) squares += std::isfinite(value) ? value * value : 0;
  const double rms = wanted.empty() ? 0 : std::sqrt(squares / static_cast<double>(wanted.size()));
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double difference = got[i] == wanted[i] ? 0 : std::abs(got[i] - wanted[i]);
    const double error = difference / (std::abs(wanted[i]) + rms + 1e-12);
    worst = error <= worst ? worst : error;  // also when it is NaN
    if (std::isnan(error)) return std::numeric_limits<double>::infinity();
  }
  return worst;
}

std::vector<OpCase> op_cases() {
  std::vector<OpCase> rows;
  for (const auto add :
       {add_shape_rows, add_elementwise_rows, add_reduce_rows, add_matmul_rows, add_norm_rows, add_image_rows,
        add_attention_rows, add_fused_rows, add_update_rows, add_bench_rows}) {
    add(rows);
  }
  return rows;
}

std::vector<OpCase> bf16_cases() {
  std::vector<OpCase> rows;
  for (OpCase row : op_cases()) {
    // Rows of stored weights are about those, updates about f32 state.
    const bool plain = std::all_of(row.inputs.begin(), row.inputs.end(), [](const OpInput& input) {
      return input.dtype == DType::f32 || input.dtype == DType::i32;
    });
    const bool activations =
        std::any_of(row.inputs.begin(), row.inputs.end(), [](const OpInput& input) { return !input.vector; });
    if (!plain || !activations || row.family == Family::update || row.name.starts_with("cast ") ||
        row.name.starts_with("copy"))
      continue;
    row.activations = DType::bf16;
    row.name += ", bf16";
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace danceflux::test
