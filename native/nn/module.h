// Modules: named parameters, where their numbers live, and which of them train.
//
// A stored tensor may hold several published parameters as row ranges (to_q, to_k and to_v of an attention
// are one matrix), so that one product does all of them while every name of the checkpoint stays. Such a
// tensor trains as soon as one of its parts is wanted: the gradient of the whole is computed, and the parts
// that are not wanted are simply absent from trainable_parameters(), so that no optimizer ever sees them.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "autograd/tape.h"
#include "core/tensor.h"

namespace danceflux {
class Backend;
}

namespace danceflux::nn {

/// matrix: kept in the storage dtype that materialize() was told (matrices, convolution kernels, embedding
/// tables). f32: always f32 (biases, norm weights, adapters).
enum class ParameterKind : std::uint8_t { matrix, f32 };

/// A stored tensor.
struct Parameter {
  Shape shape;
  ParameterKind kind = ParameterKind::matrix;
  Tensor value;            // undefined until materialize()
  Tensor gradient;         // f32, contiguous; undefined while frozen
  bool trainable = false;  // some part of it is wanted
};

/// A parameter as the checkpoint publishes it: rows row .. row + rows - 1 of a stored tensor.
struct NamedParameter {
  std::string name;
  std::shared_ptr<Parameter> parameter;
  Shape shape;
  std::int64_t row = 0, rows = 0;
  bool trainable = false;  // this part itself is wanted

  /// Contiguous views. gradient() is undefined while the stored tensor is frozen.
  Tensor value() const;
  Tensor gradient() const;
};

/// What a backward pass is to the update that it belongs to.
struct BackwardMarks {
  /// The last one before the optimizer's step: gradients may travel as soon as they are whole.
  bool synchronize = false;
  /// The last one of a sample. Counts only where gradients are summed over samples in a tree.
  bool ends_sample = false;
  /// How many samples this rank's part of the update has; they shape the tree.
  std::int64_t samples = 1;
};

/// Who keeps the gradients of a model, when it is not the model itself.
class GradientKeeper {
 public:
  virtual ~GradientKeeper() = default;
  /// A backward pass is about to be recorded.
  virtual void begin(const BackwardMarks& marks) = 0;
  /// Memory for the gradient of a stored tensor, holding what was gathered so far: f32, contiguous, its
  /// shape.
  virtual Tensor memory(Parameter& parameter) = 0;
  /// Backward added its last contribution.
  virtual void finished(Parameter& parameter) = 0;
  /// Drops all that was gathered.
  virtual void clear() = 0;
};

/// A tree of parameters. Parts are members that name their parent when they are made, so a module never
/// moves. Not thread-safe: a module belongs to its device's thread.
class Module {
 public:
  /// The root: a model.
  Module() = default;
  /// A part of `parent`. An empty name adds nothing to the names of its parameters.
  Module(Module& parent, std::string name);
  virtual ~Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  /// In the order of construction, which is the order of the forward pass.
  std::vector<NamedParameter> named_parameters() const;
  /// Those that set_trainable asked for.
  std::vector<NamedParameter> trainable_parameters() const;
  /// How many numbers all published parameters have together.
  std::size_t parameter_count() const;

  /// Allocates every stored tensor, uninitialised. Throws ERR_DTYPE unless `storage` is f32, bf16 or f16,
  /// ERR_MEMORY.
  void materialize(Backend& device, DType storage);
  /// Takes `count` host numbers, row-major, as the published parameter `name`; they are converted piece by
  /// piece, so no second copy of the whole is made. `transposed`: the data is the transpose of a matrix (rank
  /// 2). `data` needs no alignment. Throws ERR_NAME on an unknown name, ERR_SHAPE on a wrong count,
  /// ERR_DTYPE, ERR_NOT_FINITE on NaN or infinity.
  void load(const std::string& name, DType dtype, const void* data, std::size_t count,
            bool transposed = false);
  /// Names that load() never saw since materialize().
  std::vector<std::string> missing() const;

  /// Decides for every published name whether it trains. Frees gradients that nobody wants any more.
  void set_trainable(const std::function<bool(const std::string& name)>& wanted);
  /// Asks `tape` to add the gradients of all trainable tensors in place; makes the gradients (zeros) where
  /// they do not exist yet, unless a keeper does.
  void watch(Tape& tape, const BackwardMarks& marks = {});
  /// From now on `keeper` keeps the gradients of the trainable tensors, as long as it lives.
  void set_keeper(const std::weak_ptr<GradientKeeper>& keeper) { keeper_ = keeper; }
  void zero_gradients();
  void free_gradients();

  /// Tells where all stored tensors lie: another number as soon as one of them, here or in another module,
  /// was made or dropped. For keys of Backend::recurring.
  std::uint64_t layout() const;
  /// Where the parameters live. Throws ERR_DEVICE before materialize().
  Backend& device() const;
  /// In what dtype activations are kept beside these weights.
  DType activation_dtype() const;
  /// Host numbers as a tensor on the module's device.
  Tensor upload(const Shape& shape, std::span<const float> values) const;
  Tensor upload(const Shape& shape, std::span<const std::int32_t> values) const;
  /// `x` in the activation dtype.
  Tensor activation(const Tensor& x) const;

  /// Calls `visit` for this module (named `prefix`) and everything below it, in order.
  void walk(const std::string& prefix, const std::function<void(const std::string& name, Module&)>& visit);
  /// What walk("") calls this module: "transformer_blocks.0.attn.to_out.0"; empty for the root.
  std::string full_name() const;

 protected:
  struct PartShape {
    std::string name;  // relative to this module
    std::int64_t rows;
  };
  /// Registers a tensor with one published name.
  std::shared_ptr<Parameter> parameter(std::string name, const Shape& shape, ParameterKind kind);
  /// Registers a tensor of shape [sum of rows, tail...] whose parts have names of their own.
  std::shared_ptr<Parameter> parameter(const std::vector<PartShape>& parts, const Shape& tail,
                                       ParameterKind kind);
  /// Makes a member that was made as a root a part of this module; its parameters keep their names.
  void adopt(Module& part) {
    part.parent_ = this;
    children_.push_back({{}, &part});
  }
  /// Takes a registered tensor out again.
  void forget(const std::shared_ptr<Parameter>& parameter);
  bool is_materialized() const { return device_ != nullptr; }

 private:
  struct Part {
    std::string name;
    std::int64_t row, rows;
    bool loaded = false, trainable = false;
  };
  struct Stored {
    std::shared_ptr<Parameter> parameter;
    std::vector<Part> parts;
  };
  struct Child {
    std::string name;
    Module* module;
  };
  using PartVisitor = std::function<void(const std::string& name, Stored&, Part&)>;
  void for_each_part(const std::string& prefix, const PartVisitor& visit);
  void for_each_part(const PartVisitor& visit) const;
  void for_each_stored(const std::function<void(Parameter&)>& visit) const;
  void allocate(Parameter& parameter) const;

  std::vector<Stored> stored_;
  std::vector<Child> children_;
  std::weak_ptr<GradientKeeper> keeper_;
  Module* parent_ = nullptr;
  std::string name_;
  Backend* device_ = nullptr;
  DType storage_ = DType::f32;
};

/// "a.b" from "a" and "b"; either may be empty.
std::string join_names(const std::string& prefix, const std::string& name);
/// Host numbers as an f32 tensor on the device where `beside` lives.
Tensor upload_beside(const Tensor& beside, const Shape& shape, std::span<const float> values);

}  // namespace danceflux::nn
