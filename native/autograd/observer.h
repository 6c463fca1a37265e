// Somebody who looks at what ops and blocks compute, and at the gradients that come back, without changing a
// bit of it. While nobody looks, every place that could be looked at costs one thread-local load.
//
// Names: a layer's op has the layer's full name ("flux.transformer_blocks.0.attn.to_q"), any other op that of
// its block and its own ("flux.transformer_blocks.0.modulated_norm"), numbered when it comes again (".1").
// What runs again in backward (checkpoints) gets the same names, and a gradient that of what it is of.
#pragma once
#include <concepts>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/tensor.h"

namespace danceflux {

enum class SightRole : std::uint8_t { input, output, gradient };

/// One tensor as it was seen.
struct Sight {
  const std::string& name;
  const std::string& block;  // of the innermost block, empty outside of all
  const char* op;            // "linear"; "block" for a block's inputs and outputs
  SightRole role;
  int index;  // which input or output
  const Tensor& tensor;
};

class Observer {
 public:
  enum class Level : std::uint8_t { block, op };

  explicit Observer(Level level) : level_(level) {}
  virtual ~Observer() = default;
  Observer(const Observer&) = delete;
  Observer& operator=(const Observer&) = delete;

  /// Who looks at this thread, or null.
  static Observer* current();
  /// Looks at this thread from now on; null: nobody.
  static void install(Observer* observer);

  /// An op gave `out`. Undefined inputs are left out.
  void op(const char* op, const Tensor& out, std::span<const Tensor> inputs);
  /// Input or output number `index` of the block that is open.
  void block(SightRole role, int index, const Tensor& tensor);
  /// `tensor` is the gradient of the tensor with this identity.
  void gradient(std::uint64_t id, const Tensor& tensor);
  /// The model whose forward is under way.
  const std::string& model() const { return root_; }
  /// The name that the next op will get, if it is `op`: that of the op under way, for a backend that asks.
  std::string upcoming(const char* op) const;
  /// Forgets identities and counts: something new begins.
  void restart();

 protected:
  /// Must neither throw nor change anything that ops read.
  virtual void see(const Sight& sight) = 0;

 private:
  friend class BlockScope;
  friend class OpName;
  friend class Unwatched;
  friend class BackwardScope;
  friend class ReplayScope;
  struct Named {
    std::string name, block;
    const char* op;
    int index;
  };
  bool registers() const { return muted_ == 0 && (!backward_ || replaying_); }
  bool shows() const { return muted_ == 0 && !backward_; }
  std::string base_name(const char* op) const;
  std::string next_name(const char* op);

  Level level_;
  int muted_ = 0;           // inside an op that is one for the outside
  bool backward_ = false;   // inside a gradient function
  bool replaying_ = false;  // a block is run again, for its gradient
  std::string root_, block_, given_;
  std::map<std::string, int> counts_;
  std::unordered_map<std::uint64_t, Named> known_;
};

/// Called by ops: one line for those who look.
template <class... Tensors>
inline void observed(const char* op, const Tensor& out, const Tensors&... inputs) {
  if (Observer* observer = Observer::current()) [[unlikely]] {
    const Tensor all[] = {inputs..., Tensor()};
    observer->op(op, out, {all, sizeof...(inputs)});
  }
}

/// A block of a model (or, with a name without dots, the model itself) while it runs.
class BlockScope {
 public:
  /// `name()` gives the name inside the model; it is called only when somebody looks.
  template <std::invocable Name>
  explicit BlockScope(const Name& name) : observer_(Observer::current()) {
    if (observer_) [[unlikely]]
      enter(name(), Kind::block);
  }
  /// The whole model; numbered when it comes again in a stage.
  explicit BlockScope(const char* model) : observer_(Observer::current()) {
    if (observer_) [[unlikely]]
      enter(model, Kind::model);
  }
  /// The model whose name Observer::model() told, while a part of it runs again.
  static BlockScope again(const std::string& model) { return BlockScope(model); }
  ~BlockScope() {
    if (observer_) [[unlikely]]
      leave();
  }
  BlockScope(const BlockScope&) = delete;
  BlockScope& operator=(const BlockScope&) = delete;

  void input(int index, const Tensor& tensor) const {
    if (observer_) [[unlikely]]
      observer_->block(SightRole::input, index, tensor);
  }
  void output(int index, const Tensor& tensor) const {
    if (observer_) [[unlikely]]
      observer_->block(SightRole::output, index, tensor);
  }

 private:
  enum class Kind : std::uint8_t { block, model, again };
  explicit BlockScope(const std::string& model) : observer_(Observer::current()) {
    if (observer_) enter(model, Kind::again);
  }
  void enter(const std::string& name, Kind kind);
  void leave();

  Observer* observer_;
  std::string outer_root_, outer_block_;
  std::map<std::string, int> outer_counts_;
};

/// The next op that is seen has this name inside its model: layers name theirs.
class OpName {
 public:
  template <std::invocable Name>
  explicit OpName(const Name& name) : observer_(Observer::current()) {
    if (observer_) [[unlikely]]
      observer_->given_ = name();
  }
  ~OpName() {
    if (observer_) [[unlikely]]
      observer_->given_.clear();
  }
  OpName(const OpName&) = delete;
  OpName& operator=(const OpName&) = delete;

 private:
  Observer* observer_;
};

/// Ops inside are parts of one that is seen as a whole.
class Unwatched {
 public:
  explicit Unwatched(bool applies = true) : observer_(applies ? Observer::current() : nullptr) {
    if (observer_) [[unlikely]]
      ++observer_->muted_;
  }
  ~Unwatched() {
    if (observer_) [[unlikely]]
      --observer_->muted_;
  }
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;

 private:
  Observer* observer_;
};

/// A gradient function runs: its ops are no part of the model.
class BackwardScope {
 public:
  explicit BackwardScope(Observer* observer);
  ~BackwardScope();
  BackwardScope(const BackwardScope&) = delete;
  BackwardScope& operator=(const BackwardScope&) = delete;

 private:
  Observer* observer_;
  bool outer_backward_ = false, outer_replaying_ = false;
};

/// A block runs again inside a gradient function, to be walked back.
class ReplayScope {
 public:
  ReplayScope();
  ~ReplayScope();
  ReplayScope(const ReplayScope&) = delete;
  ReplayScope& operator=(const ReplayScope&) = delete;

 private:
  Observer* observer_;
  bool outer_ = false;
};

}  // namespace danceflux
