// What the tape is made of; read by tape.cpp and checkpoint.cpp alone.
#pragma once
#include "autograd/tape.h"

namespace danceflux {

struct Tape::Leaves {
  std::unordered_map<std::uint64_t, Tensor> into;
};

/// A gradient on its way. `owned`: nobody else holds its memory, so it may be added to in place.
struct Tape::Slot {
  Tensor sum;
  bool owned = false;
};

/// Where a part of a whole lies. Views of it share `taken`: the place is given away once.
struct Tape::Part {
  std::uint64_t whole;
  Shape shape;          // of the whole, contiguous
  const char* address;  // of its first element
  std::shared_ptr<bool> taken;
};

/// What is left of an output: holding the tensor itself would keep its memory until backward, needed or not.
struct OutputTrace {
  explicit OutputTrace(const Tensor& out)
      : id(out.id()), shape(out.shape()), dtype(out.dtype()), device(out.storage()->shared_device()) {}
  std::uint64_t id;
  Shape shape;
  DType dtype;
  std::shared_ptr<Device> device;
};

struct Tape::Node {
  const char* op;
  std::vector<OutputTrace> outputs;
  std::vector<std::uint64_t> inputs;
  GradientFunction gradient;
};

struct Gradients::State {
  Tape& tape;
  const Tape::Node& node;
  Tape::Slots& slots;
  const std::unordered_map<std::uint64_t, Tensor>& into;
};

}  // namespace danceflux
