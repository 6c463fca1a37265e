#include "backend/ascend/handles.h"

#include <algorithm>

namespace danceflux::ascend {
namespace {

void append(std::string& key, const void* bytes, std::size_t count) {
  key.append(static_cast<const char*>(bytes), count);
}

template <class List>
void append_list(std::string& key, const List& values) {
  const std::uint64_t size = values.size();
  append(key, &size, sizeof size);
  append(key, values.data(), values.size() * sizeof values[0]);
}

void tell_list(std::ostream& text, const IntList& values) {
  text << '[';
  for (std::size_t i = 0; i < values.size(); ++i) text << (i ? ", " : "") << values[i];
  text << ']';
}

IntList dense_strides(const IntList& dims) {
  IntList strides(dims.size(), 1);
  for (std::size_t i = dims.size(); i-- > 1;) strides[i - 1] = strides[i] * dims[i];
  return strides;
}

}  // namespace

AclDataType data_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return kAclFloat;
    case DType::bf16:
      return kAclBf16;
    case DType::f16:
      return kAclFloat16;
    case DType::f64:
      return kAclDouble;
    case DType::i32:
      return kAclInt32;
    case DType::i64:
      return kAclInt64;
    case DType::u8:
      return kAclUint8;
  }
  fail("ERR_DTYPE", "ascend: expected a known dtype, got ", static_cast<int>(dtype));
}

TensorForm form_of(const Tensor& tensor, AclFormat format) {
  TensorForm form;
  form.dims.assign(tensor.shape().begin(), tensor.shape().end());
  form.strides.assign(tensor.strides().begin(), tensor.strides().end());
  form.dtype = tensor.dtype();
  form.type = data_type(tensor.dtype());
  form.format = format;
  const auto size = static_cast<std::int64_t>(size_of(tensor.dtype()));
  form.address = tensor.storage()->address();
  form.storage = static_cast<std::int64_t>(tensor.storage()->bytes()) / size;
  form.offset = (static_cast<const char*>(tensor.address()) - static_cast<const char*>(form.address)) / size;
  // An axis of one element has any stride; one spelling of a tensor is enough for keys and for kernels that
  // look whether it is dense.
  const IntList dense = dense_strides(form.dims);
  for (std::size_t i = 0; i < dense.size(); ++i) {
    if (form.dims[i] == 1) form.strides[i] = dense[i];
  }
  return form;
}

TensorForm empty_form(DType dtype) {
  TensorForm form;
  form.dims = {0};
  form.strides = {1};
  form.dtype = dtype;
  form.type = data_type(dtype);
  return form;
}

std::string TensorForm::told() const {
  std::ostringstream text;
  text << name_of(dtype) << ' ';
  tell_list(text, dims);
  if (strides != dense_strides(dims)) {
    text << " strides ";
    tell_list(text, strides);
  }
  return text.str();
}

TensorArgument::TensorArgument(const Acl& acl, TensorForm form, bool present)
    : acl_(&acl), form_(std::move(form)) {
  if (!present) return;
  raw_ = acl.aclCreateTensor(form_.dims.data(), form_.dims.size(), form_.type, form_.strides.data(),
                             form_.offset, form_.format, &form_.storage, 1, form_.address);
  require(raw_ != nullptr, "ERR_DEVICE", "ascend: aclCreateTensor: expected a descriptor of ", form_.told(),
          ", got none");
}

TensorArgument::TensorArgument(const Acl& acl, const BoolMask& mask)
    : TensorArgument(
          acl,
          [&] {
            TensorForm form = form_of(mask.tensor);
            form.type = kAclBool;
            return form;
          }(),
          true) {}

void TensorArgument::tell(std::ostream& text) const { text << (raw_ ? form_.told() : "none"); }

void TensorArgument::key(std::string& key) const {
  key.push_back(raw_ ? 't' : 'n');
  if (!raw_) return;
  append_list(key, form_.dims);
  append_list(key, form_.strides);
  append(key, &form_.offset, sizeof form_.offset);
  append(key, &form_.storage, sizeof form_.storage);
  append(key, &form_.type, sizeof form_.type);
  append(key, &form_.format, sizeof form_.format);
}

Argument<Number>::Argument(const Acl& acl, F32 number)
    : acl_(acl), value_(static_cast<float>(number.value)), raw_(acl.aclCreateScalar(&value_, kAclFloat)) {
  require(raw_ != nullptr, "ERR_DEVICE", "ascend: aclCreateScalar: expected a scalar of ", value_,
          ", got none");
}

Argument<Ints>::Argument(const Acl& acl, const IntList& values)
    : acl_(acl), values_(values), raw_(acl.aclCreateIntArray(values_.data(), values_.size())) {
  require(raw_ != nullptr, "ERR_DEVICE", "ascend: aclCreateIntArray: expected a list of ", values_.size(),
          " numbers, got none");
}

void Argument<Ints>::tell(std::ostream& text) const {
  if (raw_) tell_list(text, values_);
}

void Argument<Ints>::key(std::string& key) const {
  key.push_back(raw_ ? 'i' : 'n');
  append_list(key, values_);
}

Argument<Bools>::Argument(const Acl& acl, const BoolList& values) : acl_(acl), values_(values) {
  bool plain[8] = {};
  require(values.size() <= std::size(plain), "ERR_DEVICE", "ascend: expected a short list, got ",
          values.size());
  std::copy(values.begin(), values.end(), plain);
  raw_ = acl.aclCreateBoolArray(plain, values.size());
  require(raw_ != nullptr, "ERR_DEVICE", "ascend: aclCreateBoolArray: expected a list, got none");
}

void Argument<Bools>::key(std::string& key) const {
  for (const bool value : values_) key.push_back(value ? '1' : '0');
}

}  // namespace danceflux::ascend
