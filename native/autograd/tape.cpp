#include "autograd/tape.h"

#include "backend/backend.h"
#include "core/error.h"

namespace danceflux {
namespace {

thread_local Tape* current_tape = nullptr;

/// A gradient on its way: `owned` says that nobody else holds the tensor, so it may be added to in place.
struct Slot {
  Tensor sum;
  bool owned = false;
};

void add_in_place(const Tensor& sum, const Tensor& term) { backend_of(sum).binary(BinaryOp::add, sum, sum, term, 1); }

void accumulate(Slot& slot, const Tensor& term) {
  if (!slot.sum) {
    slot.sum = term;
    return;
  }
  if (!slot.owned) {
    Backend& device = backend_of(term);
    const Tensor fresh = device.empty(term.shape(), DType::f32);
    device.binary(BinaryOp::add, fresh, slot.sum, term, 1);
    slot = {fresh, true};
    return;
  }
  add_in_place(slot.sum, term);
}

}  // namespace

struct Tape::Leaves {
  std::unordered_map<std::uint64_t, Tensor> into;
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
  const Tape& tape;
  const Tape::Node& node;
  std::unordered_map<std::uint64_t, Slot>& slots;
  const std::unordered_map<std::uint64_t, Tensor>& into;
};

bool Gradients::has_output(int i) const {
  return state_.slots.contains(state_.node.outputs.at(static_cast<std::size_t>(i)).id);
}

Tensor Gradients::output(int i) {
  const OutputTrace& out = state_.node.outputs.at(static_cast<std::size_t>(i));
  const auto slot = state_.slots.find(out.id);
  if (slot != state_.slots.end()) return slot->second.sum;
  auto& device = static_cast<Backend&>(*out.device);
  const Tensor zeros = device.empty(out.shape, out.dtype);
  device.fill(zeros, 0);
  return zeros;
}

bool Gradients::wanted(int i) const {
  const std::uint64_t id = state_.node.inputs.at(static_cast<std::size_t>(i));
  return state_.tape.tracked_.contains(id) || state_.into.contains(id);
}

Tensor Gradients::accumulator(int i) const {
  const std::uint64_t id = state_.node.inputs.at(static_cast<std::size_t>(i));
  if (const auto leaf = state_.into.find(id); leaf != state_.into.end()) return leaf->second;
  const auto slot = state_.slots.find(id);
  const bool usable = slot != state_.slots.end() && slot->second.owned && slot->second.sum.is_contiguous() &&
                      slot->second.sum.dtype() == DType::f32;
  return usable ? slot->second.sum : Tensor();
}

void Gradients::add(int i, const Tensor& gradient) {
  if (!wanted(i)) return;
  const std::uint64_t id = state_.node.inputs[static_cast<std::size_t>(i)];
  if (const auto leaf = state_.into.find(id); leaf != state_.into.end()) return add_in_place(leaf->second, gradient);
  accumulate(state_.slots[id], gradient);
}

Tape::Tape() : Tape(std::make_shared<Leaves>()) {}

Tape::Tape(std::shared_ptr<Leaves> leaves) : outer_(current_tape), leaves_(std::move(leaves)) { current_tape = this; }

Tape::~Tape() { current_tape = outer_; }

Tape* Tape::current() { return current_tape; }

void Tape::watch(const Tensor& leaf, const Tensor& into) {
  if (!into) {
    tracked_[leaf.id()] = true;
    return;
  }
  require(into.shape() == leaf.shape() && into.dtype() == DType::f32 && into.is_contiguous(), "ERR_SHAPE",
          "watch: expected a contiguous f32 gradient of shape ", leaf.shape(), ", got ", into.shape());
  leaves_->into[leaf.id()] = into;
}

bool Tape::tracks(const Tensor& tensor) const {
  return tracked_.contains(tensor.id()) || leaves_->into.contains(tensor.id());
}

void Tape::record(const char* op, std::span<const Tensor> outputs, std::span<const Tensor> inputs,
                  GradientFunction gradient) {
  bool tracked = false;
  for (const Tensor& input : inputs) tracked = tracked || (input && tracks(input));
  if (tracked) record_always(op, outputs, inputs, std::move(gradient));
}

void Tape::record_always(const char* op, std::span<const Tensor> outputs, std::span<const Tensor> inputs,
                         GradientFunction gradient) {
  std::vector<std::uint64_t> ids;
  for (const Tensor& input : inputs) ids.push_back(input.id());
  for (const Tensor& output : outputs) tracked_.emplace(output.id(), false);
  nodes_.push_back({op, {outputs.begin(), outputs.end()}, std::move(ids), std::move(gradient)});
}

void Tape::backward(std::span<const Tensor> roots, std::span<const Tensor> seeds) {
  require(roots.size() == seeds.size(), "ERR_SHAPE", "backward: expected ", roots.size(), " seeds, got ", seeds.size());
  const NoRecording quiet;
  std::unordered_map<std::uint64_t, Slot> slots;
  for (std::size_t i = 0; i < roots.size(); ++i) {
    require(roots[i].shape() == seeds[i].shape(), "ERR_SHAPE", "backward: expected a seed of shape ", roots[i].shape(),
            ", got ", seeds[i].shape());
    accumulate(slots[roots[i].id()], seeds[i]);
  }
  while (!nodes_.empty()) {
    const Node node = std::move(nodes_.back());
    nodes_.pop_back();
    bool reached = false;
    for (const OutputTrace& output : node.outputs) reached = reached || slots.contains(output.id);
    if (!reached) continue;
    Gradients::State state{*this, node, slots, leaves_->into};
    Gradients gradients(state);
    node.gradient(gradients);
    for (const OutputTrace& output : node.outputs) {
      const auto tracked = tracked_.find(output.id);
      if (tracked == tracked_.end() || !tracked->second) slots.erase(output.id);
    }
  }
  for (const auto& [id, is_leaf] : tracked_) {
    if (const auto slot = slots.find(id); is_leaf && slot != slots.end()) gradients_[id] = slot->second.sum;
  }
}

Tensor Tape::gradient(const Tensor& leaf) const {
  if (const auto into = leaves_->into.find(leaf.id()); into != leaves_->into.end()) return into->second;
  const auto found = gradients_.find(leaf.id());
  return found == gradients_.end() ? Tensor() : found->second;
}

std::size_t Tape::nodes() const { return nodes_.size(); }

NoRecording::NoRecording() : outer_(current_tape) { current_tape = nullptr; }

NoRecording::~NoRecording() { current_tape = outer_; }

Tensor recorded(const char* op, const Tensor& out, std::initializer_list<Tensor> inputs, GradientFunction gradient) {
  if (Tape* tape = Tape::current()) tape->record(op, {&out, 1}, {inputs.begin(), inputs.size()}, std::move(gradient));
  return out;
}

bool wants_gradient(const Tensor& tensor) {
  const Tape* tape = Tape::current();
  return tape && tensor && tape->tracks(tensor);
}

bool recording(std::initializer_list<Tensor> inputs) {
  for (const Tensor& input : inputs) {
    if (wants_gradient(input)) return true;
  }
  return false;
}

}  // namespace danceflux
