#include "autograd/observer.h"
#include "autograd/tape_parts.h"

namespace danceflux {

std::vector<Tensor> checkpoint(Block block, std::vector<Tensor> inputs) {
  Tape* tape = Tape::current();
  if (!tape) return block(inputs);
  std::vector<Tensor> outputs;
  std::vector<std::uint64_t> reached;
  {
    const LeafObserver observer(*tape);
    outputs = block(inputs);
    reached = observer.leaves();
  }
  // A block may hand an input straight through, or one tensor twice; as outputs of this node each needs an
  // identity of its own.
  for (Tensor& output : outputs) output = output.detach();
  const Observer* observer = Observer::current();
  auto gradient = [block = std::move(block), inputs,
                   model = observer ? observer->model() : std::string()](Gradients& gradients) {
    const BlockScope same_names = BlockScope::again(model);
    Tape::replay(block, inputs, gradients);
  };
  // A block may reach leaves that are not among its inputs (its parameters), so the node is kept whatever the
  // inputs are.
  tape->record_always("checkpoint", outputs, inputs, std::move(gradient), std::move(reached));
  return outputs;
}

}  // namespace danceflux
