// What the tape is made of; read by tape.cpp and checkpoint.cpp alone.
#pragma once
#include <unordered_set>

#include "autograd/tape.h"

namespace danceflux {

/// A watched tensor that accumulates in place.
struct Tape::Leaf {
  Tensor sum;  // undefined until the first contribution where a sink gives the memory
  LeafSink sink;
  Shape shape;
  bool finished = false;  // its last contribution was told
};

struct Tape::Leaves {
  std::unordered_map<std::uint64_t, Leaf> all;
  /// The sum of a leaf, with memory; null for other tensors.
  const Tensor* sum(std::uint64_t id);
};

/// Knows how many nodes may still add to each leaf that has somebody to tell.
class Tape::Countdown {
 public:
  explicit Countdown(Tape& tape);
  /// Tells of those that no node reads.
  void unread();
  void done(const Node& node);

 private:
  void tell(std::uint64_t id);
  Leaves& leaves_;
  std::unordered_map<std::uint64_t, int> left_;
};

/// While it lives, ops on this thread leave no nodes, but the leaves of `tape` that they read are noted.
class LeafObserver {
 public:
  explicit LeafObserver(const Tape& tape);
  ~LeafObserver();
  LeafObserver(const LeafObserver&) = delete;
  LeafObserver& operator=(const LeafObserver&) = delete;

  /// An op reads `tensor`.
  static void note(const Tensor& tensor);
  /// Each once.
  std::vector<std::uint64_t> leaves() const { return {seen_.begin(), seen_.end()}; }

 private:
  const NoRecording quiet_;
  const Tape& tape_;
  LeafObserver* outer_;
  std::unordered_set<std::uint64_t> seen_;
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
  std::vector<std::uint64_t> reached;  // leaves beside the inputs
};

struct Gradients::State {
  Tape& tape;
  const Tape::Node& node;
  Tape::Slots& slots;
  Tape::Leaves& leaves;
};

}  // namespace danceflux
