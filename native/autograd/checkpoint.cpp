#include "autograd/tape.h"

namespace danceflux {

std::vector<Tensor> checkpoint(std::function<std::vector<Tensor>(std::span<const Tensor>)> block,
                               std::vector<Tensor> inputs) {
  Tape* tape = Tape::current();
  if (!tape) return block(inputs);
  std::vector<Tensor> outputs;
  {
    const NoRecording quiet;
    outputs = block(inputs);
  }
  const auto leaves = tape->leaves_;
  auto gradient = [block = std::move(block), inputs, leaves](Gradients& gradients) {
    std::vector<Tensor> fresh, seeds;
    for (const Tensor& input : inputs) fresh.push_back(input ? input.detach() : input);
    Tape inner(leaves);
    for (std::size_t i = 0; i < fresh.size(); ++i) {
      if (fresh[i] && gradients.wanted(static_cast<int>(i))) inner.watch(fresh[i]);
    }
    const std::vector<Tensor> again = block(fresh);
    for (std::size_t i = 0; i < again.size(); ++i) seeds.push_back(gradients.output(static_cast<int>(i)));
    inner.backward(again, seeds);
    for (std::size_t i = 0; i < fresh.size(); ++i) {
      if (!fresh[i]) continue;
      if (const Tensor d = inner.gradient(fresh[i])) gradients.add(static_cast<int>(i), d);
    }
  };
  // A block may reach leaves that are not among its inputs (its parameters), so the node is kept whatever the inputs are.
  tape->record_always("checkpoint", outputs, inputs, std::move(gradient));
  return outputs;
}

}  // namespace danceflux
