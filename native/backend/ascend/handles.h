// Arguments of aclnn operators, and the host objects that they become for the time of a call. An operator's
// signature says which kind is wanted; what is handed over is a tensor, a number, a list or nothing.
#pragma once
#include <initializer_list>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "backend/ascend/operators.h"
#include "core/error.h"
#include "core/tensor.h"

namespace danceflux::ascend {

/// Throws ERR_DTYPE for a dtype that CANN knows nothing of here.
AclDataType data_type(DType dtype);

/// Everything that aclCreateTensor is told of a tensor. Strides and offset in elements; the storage is a row
/// of elements, at whose start the operator counts the offset.
struct TensorForm {
  std::vector<std::int64_t> dims, strides;
  std::int64_t offset = 0, storage = 0;
  DType dtype = DType::f32;
  AclDataType type = kAclFloat;
  AclFormat format = kFormatNd;
  void* address = nullptr;  // of the storage

  std::string told() const;  // "bf16 [2, 3] strides [3, 1]"
};
TensorForm form_of(const Tensor& tensor, AclFormat format = kFormatNd);
/// A tensor of no elements, for results that an operator wants to see and does not make.
TensorForm empty_form(DType dtype);

/// A tensor whose axes mean batch, channel, height, width: convolutions ask for that to be said.
struct Nchw {
  const Tensor& tensor;
};
/// 1 where masked.
struct BoolMask {
  const Tensor& tensor;  // u8
};
struct NoElements {
  DType dtype;
};
/// Numbers become a scalar of dtype f32.
struct F32 {
  double value;
};
using IntList = std::vector<std::int64_t>;
using BoolList = std::vector<bool>;

/// What an argument is made of, so that a tuple of arguments is made in place.
template <class Value>
struct Given {
  const Acl& acl;
  const Value& value;
};
template <class Parameter>
class Argument;

class TensorArgument {
 public:
  template <class Value>
  TensorArgument(const Given<Value>& given) : TensorArgument(given.acl, given.value) {}
  TensorArgument(const Acl& acl, const Tensor& tensor)
      : TensorArgument(acl, tensor ? form_of(tensor) : TensorForm{}, tensor.defined()) {}
  TensorArgument(const Acl& acl, const Nchw& image)
      : TensorArgument(acl, form_of(image.tensor, kFormatNchw), true) {}
  TensorArgument(const Acl& acl, const BoolMask& mask);
  TensorArgument(const Acl& acl, NoElements none) : TensorArgument(acl, empty_form(none.dtype), true) {}
  TensorArgument(const Acl& acl, std::nullptr_t) : TensorArgument(acl, TensorForm{}, false) {}
  TensorArgument(TensorArgument&& other) noexcept
      : acl_(other.acl_), form_(std::move(other.form_)), raw_(std::exchange(other.raw_, nullptr)) {}
  TensorArgument& operator=(TensorArgument&&) = delete;
  ~TensorArgument() {
    if (raw_) acl_->aclDestroyTensor(raw_);
  }

  bool present() const { return raw_ != nullptr; }
  const TensorForm& form() const { return form_; }
  aclTensor* handle() const { return raw_; }
  void tell(std::ostream& text) const;
  /// What a planned operator depends on; the address is not part of it.
  void key(std::string& key) const;

 protected:
  TensorArgument(const Acl& acl, TensorForm form, bool present);
  const Acl* acl_;
  TensorForm form_;
  aclTensor* raw_ = nullptr;
};

template <>
class Argument<In> : public TensorArgument {
 public:
  using TensorArgument::TensorArgument;
  static constexpr bool kIsInput = true, kIsOutput = false;
  In raw() const { return raw_; }
};
template <>
class Argument<Out> : public TensorArgument {
 public:
  using TensorArgument::TensorArgument;
  static constexpr bool kIsInput = false, kIsOutput = true;
  Out raw() const { return raw_; }
};

/// What arguments that are no tensors have in common.
struct PlainArgument {
  static constexpr bool kIsInput = false, kIsOutput = false;
  PlainArgument() = default;
  PlainArgument(const PlainArgument&) = delete;
  PlainArgument& operator=(const PlainArgument&) = delete;
  void tell(std::ostream&) const {}
  bool present() const { return true; }
};

template <>
class Argument<Number> : public PlainArgument {
 public:
  template <class Value>
  Argument(const Given<Value>& given) : Argument(given.acl, given.value) {}
  Argument(const Acl& acl, F32 number);
  ~Argument() { acl_.aclDestroyScalar(raw_); }
  Number raw() const { return raw_; }
  void key(std::string& key) const { key.append(reinterpret_cast<const char*>(&value_), sizeof value_); }

 private:
  const Acl& acl_;
  float value_;
  aclScalar* raw_;
};

template <>
class Argument<Ints> : public PlainArgument {
 public:
  template <class Value>
  Argument(const Given<Value>& given) : Argument(given.acl, given.value) {}
  Argument(const Acl& acl, const IntList& values);
  Argument(const Acl& acl, std::nullptr_t) : acl_(acl), raw_(nullptr) {}
  ~Argument() {
    if (raw_) acl_.aclDestroyIntArray(raw_);
  }
  Ints raw() const { return raw_; }
  void tell(std::ostream& text) const;
  void key(std::string& key) const;

 private:
  const Acl& acl_;
  IntList values_;
  aclIntArray* raw_;
};

template <>
class Argument<Bools> : public PlainArgument {
 public:
  template <class Value>
  Argument(const Given<Value>& given) : Argument(given.acl, given.value) {}
  Argument(const Acl& acl, const BoolList& values);
  ~Argument() { acl_.aclDestroyBoolArray(raw_); }
  Bools raw() const { return raw_; }
  void key(std::string& key) const;

 private:
  const Acl& acl_;
  BoolList values_;
  aclBoolArray* raw_;
};

template <>
class Argument<Text> : public PlainArgument {
 public:
  template <class Value>
  Argument(const Given<Value>& given) : Argument(given.acl, given.value) {}
  /// CANN asks for a char* and does not write to it.
  Argument(const Acl&, const char* text) : text_(text) {}
  Text raw() const { return const_cast<Text>(text_); }
  void key(std::string& key) const { key.append(text_).push_back('\0'); }

 private:
  const char* text_;
};

/// Numbers as C passes them. A float for an integer, or the reverse, does not compile.
template <class T>
requires std::is_arithmetic_v<T> || std::is_enum_v<T>
class Argument<T> : public PlainArgument {
 public:
  template <class Value>
  Argument(const Given<Value>& given) : Argument(given.acl, given.value) {}
  template <class From>
  requires(std::is_floating_point_v<From> == std::is_floating_point_v<T> &&
           std::is_same_v<From, bool> == std::is_same_v<T, bool>) Argument(const Acl&, From value)
      : value_(static_cast<T>(value)) {}
  T raw() const { return value_; }
  void key(std::string& key) const { key.append(reinterpret_cast<const char*>(&value_), sizeof value_); }

 private:
  T value_;
};

}  // namespace danceflux::ascend
