// How a fused op uses its definition.
#pragma once
#include <initializer_list>
#include <utility>
#include <vector>

#include "autograd/observer.h"
#include "autograd/tape.h"

namespace danceflux::ops {

/// What runs when the device declines: for those who look, still the one op.
template <class Compose>
Tensor in_parts(const Compose& compose) {
  const Unwatched inside;
  return compose();
}

/// The gradient of a fused op whose backward kernel was declined or is none: that of `compose`, run again.
/// `compose` takes the node's inputs as a span and returns its one output.
template <class Compose>
void composition_gradient(const Compose& compose, std::initializer_list<Tensor> inputs,
                          Gradients& gradients) {
  const Block block = [&compose](std::span<const Tensor> fresh) {
    return std::vector<Tensor>{compose(fresh)};
  };
  const Unwatched inside;  // the gradients of its parts are nobody's business either
  Tape::replay(block, {inputs.begin(), inputs.size()}, gradients);
}

}  // namespace danceflux::ops
