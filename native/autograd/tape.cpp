#include "autograd/tape.h"

#include <algorithm>

#include "autograd/observer.h"
#include "autograd/tape_parts.h"
#include "backend/backend.h"
#include "core/error.h"

namespace danceflux {
namespace {

thread_local Tape* current_tape = nullptr;
thread_local LeafObserver* current_observer = nullptr;

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

void check_sum(const Shape& shape, const Tensor& into) {
  require(into.defined() && into.shape() == shape, "ERR_SHAPE", "watch: expected a gradient of shape ", shape,
          ", got ", into.defined() ? into.shape().string() : "none");
  require(into.dtype() == DType::f32 && into.is_contiguous(), "ERR_DTYPE",
          "watch: expected a contiguous f32 gradient, got ", name_of(into.dtype()), " with strides ",
          into.strides());
}

}  // namespace

const Tensor* Tape::Leaves::sum(std::uint64_t id) {
  const auto found = all.find(id);
  if (found == all.end()) return nullptr;
  Leaf& leaf = found->second;
  // Whoever was told has moved on: what came now would be lost without a word.
  require(!leaf.finished, "ERR_TAPE", "backward: a leaf got a gradient after its last one");
  if (!leaf.sum) {
    leaf.sum = leaf.sink.into();
    check_sum(leaf.shape, leaf.sum);
  }
  return &leaf.sum;
}

Tape::Countdown::Countdown(Tape& tape) : leaves_(*tape.leaves_) {
  for (const Node& node : tape.nodes_) {
    for (const auto* list : {&node.inputs, &node.reached}) {
      for (const std::uint64_t id : *list) {
        const auto leaf = leaves_.all.find(id);
        if (leaf != leaves_.all.end() && leaf->second.sink.finished) ++left_[id];
      }
    }
  }
}

void Tape::Countdown::unread() {
  std::vector<std::uint64_t> ids;
  for (const auto& [id, leaf] : leaves_.all) {
    if (leaf.sink.finished && !leaf.finished && !left_.contains(id)) ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end());  // the same order in every run
  for (const std::uint64_t id : ids) tell(id);
}

void Tape::Countdown::done(const Node& node) {
  for (const auto* list : {&node.inputs, &node.reached}) {
    for (const std::uint64_t id : *list) {
      if (const auto left = left_.find(id); left != left_.end() && --left->second == 0) tell(id);
    }
  }
}

void Tape::Countdown::tell(std::uint64_t id) {
  Leaf& leaf = leaves_.all.at(id);
  leaf.finished = true;
  leaf.sum = {};
  leaf.sink.finished();
}

LeafObserver::LeafObserver(const Tape& tape) : tape_(tape), outer_(current_observer) {
  current_observer = this;
}

LeafObserver::~LeafObserver() { current_observer = outer_; }

void LeafObserver::note(const Tensor& tensor) {
  // A checkpoint inside another one: what it reads, the outer one reads too.
  for (LeafObserver* observer = current_observer; observer; observer = observer->outer_) {
    if (observer->tape_.is_leaf(tensor.id())) observer->seen_.insert(tensor.id());
  }
}

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
  if (const Tensor* sum = state_.leaves.sum(id)) return *sum;
  const auto slot = state_.slots.find(id);
  const bool usable = slot != state_.slots.end() && slot->second.owned && slot->second.sum.is_contiguous() &&
                      slot->second.sum.dtype() == DType::f32;
  return usable ? slot->second.sum : Tensor();
}

void Gradients::add(int i, const Tensor& gradient) {
  if (!wanted(i)) return;
  const std::uint64_t id = state_.node.inputs[static_cast<std::size_t>(i)];
  if (const Tensor* sum = state_.leaves.sum(id)) return add_in_place(*sum, gradient);
  Tape::Slot& slot = state_.slots[id];
  accumulate(slot.sum, slot.owned, gradient, false);
}

void Gradients::add(int i, Tensor&& gradient) {
  if (!wanted(i)) return;
  const std::uint64_t id = state_.node.inputs[static_cast<std::size_t>(i)];
  if (const Tensor* sum = state_.leaves.sum(id)) return add_in_place(*sum, gradient);
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
  check_sum(leaf.shape(), into);
  leaves_->all[leaf.id()] = {into, {}, leaf.shape()};
}

void Tape::watch(const Tensor& leaf, LeafSink sink) {
  require(leaf.defined(), "ERR_SHAPE", "watch: expected a tensor, got none");
  leaves_->all[leaf.id()] = {{}, std::move(sink), leaf.shape()};
}

bool Tape::tracked_id(std::uint64_t id) const {
  return tracked_.contains(id) || (!leaves_->all.empty() && leaves_->all.contains(id));
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
                         GradientFunction gradient, std::vector<std::uint64_t> reached) {
  std::vector<std::uint64_t> ids;
  ids.reserve(inputs.size());
  for (const Tensor& input : inputs) ids.push_back(input.id());
  for (const Tensor& output : outputs) tracked_.emplace(output.id(), false);
  nodes_.push_back(
      {op, {outputs.begin(), outputs.end()}, std::move(ids), std::move(gradient), std::move(reached)});
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

void Tape::walk(Slots& slots, Countdown* countdown) {
  const NoRecording quiet;
  if (countdown) countdown->unread();
  while (!nodes_.empty()) {
    const Node node = std::move(nodes_.back());  // dies at the end of the round, and what it saved with it
    nodes_.pop_back();
    bool reached = false;
    for (const OutputTrace& output : node.outputs) reached = reached || slots.contains(output.id);
    if (!reached) {
      if (countdown) countdown->done(node);
      continue;
    }
    Gradients::State state{*this, node, slots, *leaves_};
    Gradients gradients(state);
    Observer* observer = Observer::current();
    if (observer) [[unlikely]]
      show_gradients(*observer, node, slots);
    const BackwardScope backward(observer);
    node.gradient(gradients);
    if (countdown) countdown->done(node);
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
    if (const Tensor* sum = leaves_->sum(roots[i].id())) {
      add_in_place(*sum, seeds[i]);
      continue;
    }
    Slot& slot = slots[roots[i].id()];
    accumulate(slot.sum, slot.owned, seeds[i], false);
  }
  Countdown countdown(*this);
  walk(slots, &countdown);
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
    if (first < i || !input || outer.leaves.all.contains(input.id())) {
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
    if (const Tensor* sum = outer.leaves.sum(outputs[i].id())) {
      add_in_place(*sum, seed);
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
  if (const auto found = leaves_->all.find(leaf.id()); found != leaves_->all.end()) return found->second.sum;
  const auto found = gradients_.find(leaf.id());
  return found == gradients_.end() ? Tensor() : found->second;
}

std::size_t Tape::nodes() const { return nodes_.size(); }

bool Tape::is_leaf(std::uint64_t id) const { return leaves_->all.contains(id); }

NoRecording::NoRecording() : outer_(current_tape) { current_tape = nullptr; }

NoRecording::~NoRecording() { current_tape = outer_; }

Tensor recorded(const char* op, const Tensor& out, std::initializer_list<Tensor> inputs,
                GradientFunction gradient) {
  if (Tape* tape = Tape::current()) {
    tape->record(op, {&out, 1}, {inputs.begin(), inputs.size()}, std::move(gradient));
  } else if (current_observer) {
    for (const Tensor& input : inputs) LeafObserver::note(input);
  }
  return out;
}

bool wants_gradient(const Tensor& tensor) {
  const Tape* tape = Tape::current();
  if (!tape && current_observer && tensor) LeafObserver::note(tensor);
  return tape && tensor && tape->tracks(tensor);
}

bool recording(std::initializer_list<Tensor> inputs) {
  for (const Tensor& input : inputs) {
    if (wants_gradient(input)) return true;
  }
  return false;
}

}  // namespace danceflux
