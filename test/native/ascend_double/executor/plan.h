// How an op of aclnn is written: one function that checks its arguments and says what to compute.
//
//   OP(math, Exp, Tensor x, Out out) {
//     const Operand in = plan.in(x, "self", kReals), to = plan.out(out, "out", kReals);
//     plan.require(in.shape == to.shape, "...");
//     plan.compute = [=](const Launch& launch) { ... };
//   }
//
// defines aclnnExpGetWorkspaceSize and aclnnExp. The checks run in phase 1; compute runs on the stream, with
// the addresses that phase 2 found.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "ascend_double/executor/objects.h"
#include "ascend_double/runtime/stream.h"

namespace ascend_double {

using Tensor = const aclTensor*;
using Out = aclTensor*;
using List = const aclTensorList*;
using Ints = const aclIntArray*;
using Bools = const aclBoolArray*;
using Scalar = const aclScalar*;

/// A tensor as an op sees it. slot < 0: an optional one that was not given.
struct Operand {
  int slot = -1;
  aclDataType dtype = ACL_DT_UNDEFINED;
  aclFormat format = ACL_FORMAT_ND;
  Dims shape, strides;

  explicit operator bool() const { return slot >= 0; }
  std::int64_t count() const { return count_of(shape); }
  int rank() const { return static_cast<int>(shape.size()); }
  /// Negative axes count from the end.
  std::int64_t size(int axis) const {
    return shape[static_cast<std::size_t>(axis < 0 ? axis + rank() : axis)];
  }
};

/// Where the operands of one launch lie: the first element of each view, in storage.
struct Launch {
  std::vector<char*> at;
  /// Differs from launch to launch: the order of a reduction that nobody asked to be deterministic.
  std::uint64_t chance = 0;
};

/// A tensor that an executor was planned with.
struct Slot {
  aclTensor* tensor = nullptr;  // NULL: an optional one that was not given
  void* base = nullptr;
  std::int64_t offset = 0;  // bytes
  std::size_t extent = 0;   // bytes; 0 for an empty tensor
  bool output = false;
  int list = -1;  // which list it belongs to
};

class Plan {
 public:
  explicit Plan(const char* name);

  // ---- tensors: checked for type, rank and memory
  // -----------------------------------------------------------------------
  Operand in(Tensor tensor, const char* name, Types types, int least_rank = 0, int most_rank = 8);
  Operand optional(Tensor tensor, const char* name, Types types, int least_rank = 0, int most_rank = 8);
  Operand out(Tensor tensor, const char* name, Types types, int least_rank = 0, int most_rank = 8);
  Operand optional_out(Tensor tensor, const char* name, Types types);
  std::vector<Operand> in(List list, const char* name, Types types);
  std::vector<Operand> out(List list, const char* name, Types types);

  // ---- the rest
  // -----------------------------------------------------------------------------------------------------------
  const Dims& ints(Ints array, const char* name);
  const aclScalar& scalar(Scalar scalar, const char* name);
  std::vector<bool> bools(Bools array, const char* name, std::size_t count);
  std::string text(const char* value, const char* name);
  /// Axes made positive, checked and without doubles; empty: all of `rank`.
  std::vector<int> axes(Ints array, const char* name, int rank);
  int axis(std::int64_t axis, int rank);

  /// Refuses with 161002 unless it holds.
  void require(bool holds, const char* format, ...) __attribute__((format(printf, 3, 4)));
  void require_shape(const Operand& operand, const char* name, const Dims& shape);
  void require_type(const Operand& operand, const char* name, aclDataType dtype);
  /// Refuses with 161002 where the tag of the format is none of image data (NCHW, NHWC, NCL, NCDHW).
  void require_image(const Operand& operand, const char* name);

  const char* const name;
  std::function<void(const Launch&)> compute;
  std::uint64_t workspace = 0;
  /// ACL_OPT_DETERMINISTIC is on in both scopes.
  bool deterministic = false;
  std::vector<Slot> slots;

 private:
  Operand add(Tensor tensor, const char* name, Types types, int least_rank, int most_rank, bool output);
  void check_memory(const aclTensor& tensor, const char* name, Slot& slot);
  std::vector<Operand> add(List list, const char* name, Types types, bool output);
  int lists_ = 0;
};

aclnnStatus plan_op(const char* name, const std::function<void(Plan&)>& body, std::uint64_t* workspace,
                    aclOpExecutor** executor);
aclnnStatus launch_op(const char* name, void* workspace, std::uint64_t size, aclOpExecutor* executor,
                      aclrtStream stream);

template <const char* name, auto body>
struct Phases;
template <const char* name, class... Args, void (*body)(Plan&, Args...)>
struct Phases<name, body> {
  static aclnnStatus size(Args... args, std::uint64_t* workspace, aclOpExecutor** executor) {
    return plan_op(
        name, [&](Plan& plan) { body(plan, args...); }, workspace, executor);
  }
  static aclnnStatus run(void* workspace, std::uint64_t size, aclOpExecutor* executor, aclrtStream stream) {
    return launch_op(name, workspace, size, executor, stream);
  }
};

template <const char* name, const char* size_name, auto body>
struct RegisterOp {
  RegisterOp(Library library, Since since) {
    using Both = Phases<name, body>;
    Register(library, since, size_name, reinterpret_cast<void*>(&Door<size_name, &Both::size>::call));
    Register(library, since, name, reinterpret_cast<void*>(&Door<name, &Both::run>::call));
  }
};

#define ASCEND_DOUBLE_OP(library, since, name, ...)                                              \
  static void plan_##name(::ascend_double::Plan& plan, __VA_ARGS__);                             \
  static constexpr char op_##name[] = "aclnn" #name;                                             \
  static constexpr char size_##name[] = "aclnn" #name "GetWorkspaceSize";                        \
  static const ::ascend_double::RegisterOp<op_##name, size_##name, plan_##name> register_##name( \
      ::ascend_double::Library::library, ::ascend_double::since);                                \
  static void plan_##name([[maybe_unused]] ::ascend_double::Plan& plan, __VA_ARGS__)
#define OP(library, name, ...) ASCEND_DOUBLE_OP(library, always, name, __VA_ARGS__)
#define OP9(library, name, ...) ASCEND_DOUBLE_OP(library, nine, name, __VA_ARGS__)

}  // namespace ascend_double
