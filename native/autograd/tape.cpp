#include "autograd/tape.h"

#include "autograd/observer.h"
#include "autograd/tape_parts.h"
#include "backend/backend.h"
#include "core/error.h"

namespace danceflux {
namespace {

thread_local Tape* current_tape = nullptr;

void add_in_place(const Tensor& sum, const Tensor& term) {
  Backend& device = backend_of(sum);
  if (term.dtype() == sum.dtype()) return device.binary(BinaryOp::add, sum, sum, term, 1);
  const Tensor same = device.empty(term.shape(), sum.dtype());
  device.copy(same, term);
  device.binary(BinaryOp::add, sum, sum, same, 1);
}

/// Adds `term` to the sum; reuses whichever of the two memories nobody else holds.
void accumulate(Tensor& sum, bool& sum_owned, const Tensor& term, bool term_owned) {
  if (!sum) {
    sum = term;
    sum_owned = term_owned;
  } else if (sum_owned) {
    add_in_place(sum, term);
  } else {
    Backend& device = backend_of(term);
    const Tensor total = term_owned ? term : device.empty(term.shape(), term.dtype());
    device.binary(BinaryOp::add, total, sum, term, 1);
    sum = total;
    sum_owned = true;
  }
}

}  // namespace

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
  return state_.tape.tracked_id(state_.node.inputs.at(static_cast<std::size_t>(i)));
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
  if (const auto leaf = state_.into.find(id); leaf != state_.into.end())
    return add_in_place(leaf->second, gradient);
  Tape::Slot& slot = state_.slots[id];
  accumulate(slot.sum, slot.owned, gradient, false);
}

void Gradients::add(int i, Tensor&& gradient) {
  if (!wanted(i)) return;
  const std::uint64_t id = state_.node.inputs[static_cast<std::size_t>(i)];
  if (const auto leaf = state_.into.find(id); leaf != state_.into.end())
    return add_in_place(leaf->second, gradient);
  const Tensor given = std::move(gradient);
  Tape::Slot& slot = state_.slots[id];
  // Views and tensors that are saved somewhere have other holders; a broadcast view must not be written
  // either way.
  accumulate(slot.sum, slot.owned, given, given.storage().use_count() == 1 && given.is_contiguous());
}

Tensor Gradients::place(int i, const Tensor& x) {
  Tape& tape = state_.tape;
  Backend& device = backend_of(x);
  const auto part = tape.parts_.find(state_.node.inputs.at(static_cast<std::size_t>(i)));
  if (part == tape.parts_.end() || *part->second.taken) return device.empty(x.shape(), x.dtype());
  const auto& [whole, shape, address, taken] = part->second;
  *taken = true;
  Tensor& gradient = tape.wholes_[whole];
  if (!gradient) gradient = device.empty(shape, x.dtype());
  const auto offset =
      (static_cast<const char*>(x.address()) - address) / static_cast<std::ptrdiff_t>(size_of(x.dtype()));
  return Tensor(gradient.storage(), x.dtype(), x.shape(), x.strides(), offset);
}

Tensor Gradients::placed(int i) {
  auto& wholes = state_.tape.wholes_;
  const auto whole = wholes.find(state_.node.inputs.at(static_cast<std::size_t>(i)));
  if (whole == wholes.end()) return {};
  Tensor gradient = std::move(whole->second);
  wholes.erase(whole);
  return gradient;
}

Tape::Tape() : outer_(current_tape), leaves_(std::make_shared<Leaves>()) { current_tape = this; }

Tape::Tape(const Tape* replayed) : outer_(current_tape), replayed_(replayed), leaves_(replayed->leaves_) {
  current_tape = this;
}

Tape::~Tape() { current_tape = outer_; }

Tape* Tape::current() { return current_tape; }

void Tape::watch(const Tensor& leaf, const Tensor& into) {
  require(leaf.defined(), "ERR_SHAPE", "watch: expected a tensor, got none");
  if (!into) {
    tracked_[leaf.id()] = true;
    return;
  }
  require(into.shape() == leaf.shape(), "ERR_SHAPE", "watch: expected a gradient of shape ", leaf.shape(),
          ", got ", into.shape());
  require(into.dtype() == DType::f32 && into.is_contiguous(), "ERR_DTYPE",
          "watch: expected a contiguous f32 gradient, got ", name_of(into.dtype()), " with strides ",
          into.strides());
  leaves_->into[leaf.id()] = into;
}

bool Tape::tracked_id(std::uint64_t id) const {
  return tracked_.contains(id) || (!leaves_->into.empty() && leaves_->into.contains(id));
}

bool Tape::tracks(const Tensor& tensor) const {
  if (tracked_id(tensor.id())) return true;
  // A block that is run again gets its inputs under new identities. One that it still knows by the old was
  // reached from outside, and its gradient would be lost without a word.
  for (const Tape* tape = replayed_; tape; tape = tape->replayed_) {
    require(
        !tape->tracked_.contains(tensor.id()), "ERR_TAPE",
        "checkpoint: expected every tracked tensor that the block reads among its inputs, got one of shape ",
        tensor.shape(), " from outside");
  }
  return false;
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
  ids.reserve(inputs.size());
  for (const Tensor& input : inputs) ids.push_back(input.id());
  for (const Tensor& output : outputs) tracked_.emplace(output.id(), false);
  nodes_.push_back({op, {outputs.begin(), outputs.end()}, std::move(ids), std::move(gradient)});
}

void Tape::note_parts(std::span<const Tensor> parts, const Tensor& whole) {
  if (!whole.is_contiguous()) return;
  for (const Tensor& part : parts) {
    parts_[part.id()] = {whole.id(), whole.shape(), static_cast<const char*>(whole.address()),
                         std::make_shared<bool>(false)};
  }
}

void Tape::note_view(const Tensor& view, const Tensor& x) {
  if (const auto part = parts_.find(x.id()); part != parts_.end()) parts_.emplace(view.id(), part->second);
}

void Tape::show_gradients(Observer& observer, const Node& node, const Slots& slots) {
  for (const OutputTrace& output : node.outputs) {
    if (const auto slot = slots.find(output.id); slot != slots.end())
      observer.gradient(output.id, slot->second.sum);
  }
}

void Tape::walk(Slots& slots) {
  const NoRecording quiet;
  while (!nodes_.empty()) {
    const Node node = std::move(nodes_.back());  // dies at the end of the round, and what it saved with it
    nodes_.pop_back();
    bool reached = false;
    for (const OutputTrace& output : node.outputs) reached = reached || slots.contains(output.id);
    if (!reached) continue;
    Gradients::State state{*this, node, slots, leaves_->into};
    Gradients gradients(state);
    Observer* observer = Observer::current();
    if (observer) [[unlikely]]
      show_gradients(*observer, node, slots);
    const BackwardScope backward(observer);
    node.gradient(gradients);
    for (const OutputTrace& output : node.outputs) {
      const auto tracked = tracked_.find(output.id);
      if (tracked == tracked_.end() || !tracked->second) slots.erase(output.id);
    }
  }
}

void Tape::backward(std::span<const Tensor> roots, std::span<const Tensor> seeds) {
  require(roots.size() == seeds.size(), "ERR_SHAPE", "backward: expected ", roots.size(), " seeds, got ",
          seeds.size());
  Slots slots;
  for (std::size_t i = 0; i < roots.size(); ++i) {
    require(roots[i].shape() == seeds[i].shape(), "ERR_SHAPE", "backward: expected a seed of shape ",
            roots[i].shape(), ", got ", seeds[i].shape());
    if (const auto leaf = leaves_->into.find(roots[i].id()); leaf != leaves_->into.end()) {
      add_in_place(leaf->second, seeds[i]);
      continue;
    }
    Slot& slot = slots[roots[i].id()];
    accumulate(slot.sum, slot.owned, seeds[i], false);
  }
  walk(slots);
  for (const auto& [id, is_leaf] : tracked_) {
    if (const auto slot = slots.find(id); is_leaf && slot != slots.end()) gradients_[id] = slot->second.sum;
  }
}

void Tape::replay(const Block& block, std::span<const Tensor> inputs, Gradients& gradients) {
  Gradients::State& outer = gradients.state_;
  Tape tape(&outer.tape);
  Slots slots;
  std::vector<Tensor> fresh;
  std::unordered_map<std::uint64_t, std::uint64_t> old_id;  // of each fresh input
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Tensor& input = inputs[i];
    std::size_t first = 0;  // a tensor that comes twice stays one
    while (inputs[first].id() != input.id()) ++first;
    if (first < i || !input || outer.into.contains(input.id())) {
      fresh.push_back(first < i ? fresh[first] : input);
      continue;
    }
    fresh.push_back(input.detach());
    if (!gradients.wanted(static_cast<int>(i))) continue;
    tape.watch(fresh[i]);
    old_id[fresh[i].id()] = input.id();
    // The sum so far moves in and comes back, so that terms are added in the same order as without a replay.
    if (const auto slot = outer.slots.find(input.id()); slot != outer.slots.end()) {
      slots[fresh[i].id()] = std::move(slot->second);
      outer.slots.erase(slot);
    }
  }
  const std::vector<Tensor> outputs = [&] {
    const ReplayScope again;
    return block(fresh);
  }();
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (!gradients.has_output(static_cast<int>(i))) continue;
    const Tensor seed = gradients.output(static_cast<int>(i));
    if (const auto leaf = outer.into.find(outputs[i].id()); leaf != outer.into.end()) {
      add_in_place(leaf->second, seed);
      continue;
    }
    Slot& slot = slots[outputs[i].id()];
    accumulate(slot.sum, slot.owned, seed, false);
  }
  tape.walk(slots);
  for (const auto& [fresh_id, id] : old_id) {
    if (const auto slot = slots.find(fresh_id); slot != slots.end())
      outer.slots[id] = std::move(slot->second);
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

Tensor recorded(const char* op, const Tensor& out, std::initializer_list<Tensor> inputs,
                GradientFunction gradient) {
  if (Tape* tape = Tape::current())
    tape->record(op, {&out, 1}, {inputs.begin(), inputs.size()}, std::move(gradient));
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
