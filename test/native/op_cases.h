// One table of op cases, read by correctness, gradient, speed and support. A new op is a row here, a new
// backend reads it as it is.
#pragma once
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "ops/ops.h"

namespace danceflux::test {

/// What an input is filled with. All streams are functions of the case's name and the input's position.
enum class Fill : std::uint8_t {
  normal,    // N(0, scale^2) + shift
  positive,  // uniform in (0.1, 2.1)
  ids,       // i32 of id_list(count, bound)
};

struct OpInput {
  Shape shape;
  DType dtype = DType::f32;
  Fill fill = Fill::normal;
  float scale = 1, shift = 0;
  std::int32_t bound = 0;  // ids only
  bool gradient = true;
  bool vector = false;   // f32 whatever the activations are: biases, weights of norms, tables, state
  bool batched = false;  // axis 0 counts images, whose results may not depend on each other
};

/// Ops whose errors are of one kind.
enum class Family : std::uint8_t { exact, elementwise, reduce, matmul, norm, attention, conv, update };

/// Which machines a case is for.
enum class Size : std::uint8_t {
  test,   // small and odd
  bench,  // as large as real layers; timed, and checked once
};

using Forward = std::function<std::vector<Tensor>(std::span<const Tensor>)>;

struct OpCase {
  std::string name;  // "linear bf16 [3, 5, 7] to 4 with bias"
  Family family = Family::exact;
  std::vector<OpInput> inputs = {};
  Forward forward = {};
  const char* shortcut = "";  // the shortcut that it exercises, if any
  const char* shortcut_backward = "";
  double flops = 0;  // of one forward; 0: the case is bound by memory
  double bytes = 0;  // read and written by one forward
  Size size = Size::test;
  bool differentiable = true;
  DType activations = DType::f32;  // bf16: inputs that are not vectors, on devices that keep them so
};

/// Every row.
std::vector<OpCase> op_cases();
/// The rows again with bf16 activations, where that makes sense. A device that keeps none gets the same
/// rounded numbers in f32: an oracle that rounds nothing in between.
std::vector<OpCase> bf16_cases();

/// The same numbers on every device (stored dtypes are rounded before).
std::vector<Tensor> make_inputs(Backend& device, const OpCase& row);
/// Numbers 0 .. bound-1, some of them twice.
std::vector<std::int32_t> id_list(std::int64_t count, std::int32_t bound);
/// A reproducible N(0, 1) stream.
std::vector<float> normal_stream(const std::string& seed, std::int64_t count);

/// The greatest |got - wanted| / (|wanted| + rms(wanted)) that f32 arithmetic may leave, by family; 0: no bit
/// may differ. Stored bf16 and f16 weights are the same numbers on both sides, so they earn no more.
double forward_tolerance(Family family, DType activations = DType::f32);
double gradient_tolerance(Family family, DType activations = DType::f32);
/// A result that is itself rounded to bf16 or f16 may differ by one unit in its last place.
double rounding_of(DType dtype);
/// That error of `got`. Infinite when one is not finite and the other is.
double error_of(std::span<const double> got, std::span<const double> wanted);

}  // namespace danceflux::test
