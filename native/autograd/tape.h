// The tape: while one is open, each op leaves a node (which tensors it read and made, and its gradient
// function); backward walks the nodes in reverse. First-order only. Tensors are told apart by their identity
// (Tensor::id).
#pragma once
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/tensor.h"

namespace danceflux {

class Observer;

/// What a gradient function sees: the gradients of its outputs, and a place for the gradients of its inputs.
class Gradients {
 public:
  struct State;
  explicit Gradients(State& state) : state_(state) {}

  /// Gradient of output `i`; zeros if nothing flowed into it.
  Tensor output(int i = 0);
  /// True if a gradient flowed into output `i`.
  bool has_output(int i) const;
  /// Does anybody want the gradient of input `i`?
  bool wanted(int i) const;
  /// Adds `gradient` (of the input's shape) to the gradient of input `i`; does nothing if it is not wanted.
  void add(int i, const Tensor& gradient);
  /// The same for a tensor that its maker gives away: its memory may become the sum.
  void add(int i, Tensor&& gradient);
  /// A contiguous f32 tensor that already holds a sum for input `i`, so that an op may add in place;
  /// undefined if there is none. After adding to it, do not call add().
  Tensor accumulator(int i) const;
  /// Memory for the gradient of input `i`, which is `x`, to be filled and add()ed: where a split wants it, if
  /// `x` is a part of one, so strided as `x` is; otherwise new and contiguous.
  Tensor place(int i, const Tensor& x);
  /// Takes the memory that place() handed out parts of for input `i`; undefined if it did not.
  Tensor placed(int i);

 private:
  friend class Tape;
  State& state_;
};

using GradientFunction = std::function<void(Gradients&)>;
/// A piece of a model as a function of its inputs.
using Block = std::function<std::vector<Tensor>(std::span<const Tensor>)>;

/// Where the gradient of a leaf goes, and who is told when backward has added the last of it.
struct LeafSink {
  /// Asked for memory once per backward, when the first contribution comes: as watch() wants `into`.
  std::function<Tensor()> into;
  /// Called once per backward, as soon as no node is left that could add to it; a leaf that nothing reads
  /// comes first. Ops may run inside, but none that would be recorded.
  std::function<void()> finished;
};

class LeafObserver;

class Tape {
 public:
  /// Opens a recording on this thread; the one that was open before is current again when this one ends.
  Tape();
  ~Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  /// The open recording of this thread, or null.
  static Tape* current();

  /// Asks for the gradient of `leaf`. With `into` (f32, contiguous, the leaf's shape) gradients are added
  /// there in place; otherwise gradient() returns a new tensor.
  void watch(const Tensor& leaf, const Tensor& into = {});
  /// The same for a leaf whose gradient somebody else keeps, and wants to know when it is whole.
  void watch(const Tensor& leaf, LeafSink sink);
  /// Does `tensor` depend on a watched leaf (or is it one)?
  bool tracks(const Tensor& tensor) const;
  /// Called by ops: notes a node if any input is tracked. `gradient` reads outputs by position in `outputs`,
  /// inputs likewise.
  void record(const char* op, std::span<const Tensor> outputs, std::span<const Tensor> inputs,
              GradientFunction gradient);

  /// Called by split: the gradients of `parts`, which do not overlap, may be written straight into one tensor
  /// for `whole`.
  void note_parts(std::span<const Tensor> parts, const Tensor& whole);
  /// Called by ops that only look at all of `x` otherwise: what holds for the gradient of `x` holds for that
  /// of `view`.
  void note_view(const Tensor& view, const Tensor& x);

  /// Walks back from `roots`, whose gradients are `seeds`; consumes the nodes. One call per tape.
  void backward(std::span<const Tensor> roots, std::span<const Tensor> seeds);
  void backward(const Tensor& root, const Tensor& seed) { backward({&root, 1}, {&seed, 1}); }
  /// The gradient of a watched leaf after backward; undefined if nothing flowed there (with `into`: always
  /// `into`).
  Tensor gradient(const Tensor& leaf) const;
  std::size_t nodes() const;

  /// Adds the gradient of `block` at `inputs`, found by running it again on a tape of its own. `gradients`
  /// belongs to a node with the block's outputs and inputs. What a checkpoint does in backward, and a fused
  /// op whose backward kernel was declined.
  static void replay(const Block& block, std::span<const Tensor> inputs, Gradients& gradients);

 private:
  friend std::vector<Tensor> checkpoint(Block block, std::vector<Tensor> inputs);
  friend class Gradients;
  friend class LeafObserver;
  struct Leaf;
  struct Leaves;
  class Countdown;
  struct Node;
  struct Slot;
  struct Part;
  using Slots = std::unordered_map<std::uint64_t, Slot>;
  explicit Tape(const Tape* replayed);
  /// `reached`: leaves that its gradient function reads although they are not among the inputs.
  void record_always(const char* op, std::span<const Tensor> outputs, std::span<const Tensor> inputs,
                     GradientFunction gradient, std::vector<std::uint64_t> reached = {});
  bool tracked_id(std::uint64_t id) const;
  bool is_leaf(std::uint64_t id) const;  // one that accumulates in place
  void walk(Slots& slots, Countdown* countdown = nullptr);
  static void show_gradients(Observer& observer, const Node& node, const Slots& slots);

  Tape* outer_;
  const Tape* replayed_ = nullptr;  // the tape whose node is being run again on this one
  std::shared_ptr<Leaves>
      leaves_;  // watched tensors that accumulate in place; shared with the tapes of replays
  std::vector<Node> nodes_;
  std::unordered_map<std::uint64_t, bool> tracked_;  // true: a leaf watched by this tape alone
  std::unordered_map<std::uint64_t, Tensor> gradients_;
  std::unordered_map<std::uint64_t, Part> parts_;  // of a whole, by identity
  std::unordered_map<std::uint64_t, Tensor>
      wholes_;  // their gradients while backward runs, by the identity of the whole
};

/// Ops on this thread leave no nodes while it lives.
class NoRecording {
 public:
  NoRecording();
  ~NoRecording();
  NoRecording(const NoRecording&) = delete;
  NoRecording& operator=(const NoRecording&) = delete;

 private:
  Tape* outer_;
};

/// Records nothing inside `block` and runs it again in backward: memory for the inputs only, at the price of
/// a second forward. Gradients are the same, bit for bit. Leaves watched with `into` may be reached from
/// inside the block; every other tracked tensor must be among `inputs` (ERR_TAPE in backward otherwise).
/// Without an open tape it just runs the block.
std::vector<Tensor> checkpoint(Block block, std::vector<Tensor> inputs);

/// For ops with one output: records when a tape is open, and returns `out`.
Tensor recorded(const char* op, const Tensor& out, std::initializer_list<Tensor> inputs,
                GradientFunction gradient);
/// Would recorded() leave a node for these inputs? Ops ask before they save anything for backward.
bool recording(std::initializer_list<Tensor> inputs);
/// Is the gradient of this tensor wanted by the open tape?
bool wants_gradient(const Tensor& tensor);

}  // namespace danceflux
