#include "addon/model_wrap.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <unordered_set>

#include "addon/convert.h"
#include "backend/backend.h"
#include "core/cancel.h"
#include "core/philox.h"
#include "io/safetensors.h"
#include "io/tensor_file.h"
#include "nn/lora.h"
#include "ops/ops.h"

namespace danceflux::addon {
namespace {

struct LoadItem {
  std::string parameter, file, tensor;
  std::int64_t row = 0, rows = -1;
  bool transposed = false, swap_halves = false;
};

bool flag(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  return !value.IsUndefined() && to_bool(value, name);
}

LoadItem to_load_item(const Napi::Value& value) {
  const Napi::Object object = to_object(value, "load item");
  LoadItem item{to_string(field(object, "parameter"), "parameter"), to_string(field(object, "file"), "file"),
                to_string(field(object, "tensor"), "tensor")};
  if (const Napi::Value row = object.Get("row"); !row.IsUndefined()) item.row = to_integer(row, "row");
  if (const Napi::Value rows = object.Get("rows"); !rows.IsUndefined()) item.rows = to_integer(rows, "rows");
  item.transposed = flag(object, "transposed");
  item.swap_halves = flag(object, "swapHalves");
  return item;
}

std::vector<LoadItem> to_load_items(const Napi::Value& value) {
  const Napi::Array array = to_array(value, "items");
  std::vector<LoadItem> items;
  for (std::uint32_t i = 0; i < array.Length(); ++i) items.push_back(to_load_item(array.Get(i)));
  return items;
}

std::map<std::string, nn::NamedParameter> by_name(const nn::Module& module) {
  std::map<std::string, nn::NamedParameter> result;
  for (const nn::NamedParameter& parameter : module.named_parameters())
    result.emplace(parameter.name, parameter);
  return result;
}

const nn::NamedParameter& find(const std::map<std::string, nn::NamedParameter>& all,
                               const std::string& name) {
  const auto found = all.find(name);
  require(found != all.end(), "ERR_NAME", "model: expected the name of a parameter, got \"", name, "\"");
  return found->second;
}

// Shapes agree when the rows of the file's tensor hold as many numbers, row by row, as the parameter: a 1x1
// convolution may stand for a matrix, nothing else.
void check_shape(const LoadItem& item, const io::FileTensor& tensor, const Shape& wanted) {
  Shape got = tensor.shape;
  if (item.rows >= 0 && got.rank() > 0) got[0] = item.rows;
  if (item.transposed && got.rank() == 2) std::swap(got[0], got[1]);
  const auto squeezed = [](const Shape& shape) {
    Shape result;
    for (std::int64_t dim : shape) {
      if (dim != 1) result.push_back(dim);
    }
    return result;
  };
  require(squeezed(got) == squeezed(wanted), "ERR_WEIGHTS", item.parameter, ": expected shape ", wanted,
          " from the config, got ", got, " (", item.tensor, " in ", item.file, ")");
}

void load_item(nn::Module& module, const LoadItem& item, const io::TensorFile& file, const Shape& wanted) {
  const io::FileTensor& tensor = file.find(item.tensor);
  check_shape(item, tensor, wanted);
  const auto count = static_cast<std::size_t>(wanted.numel());
  std::vector<std::byte> rows(count * size_of(tensor.dtype));
  io::read_rows(tensor, item.row, item.rows, item.transposed, tensor.dtype, rows.data());
  file.release(tensor);
  if (item.swap_halves)
    std::rotate(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(rows.size() / 2), rows.end());
  try {
    module.load(item.parameter, tensor.dtype, rows.data(), count);
  } catch (const Error& error) {
    throw Error("ERR_WEIGHTS", std::string(error.what()) + " (" + item.tensor + " in " + item.file + ")",
                error.hint);
  }
}

void load_all(nn::Module& module, std::vector<LoadItem> items) {
  const auto parameters = by_name(module);
  std::map<std::string, std::shared_ptr<io::TensorFile>> files;
  for (const LoadItem& item : items) {
    auto& file = files[item.file];
    if (!file) file = io::open_tensor_file(item.file);
    throw_if_cancelled();
    load_item(module, item, *file, find(parameters, item.parameter).shape);
  }
}

}  // namespace

Napi::Value model_parameters(const Napi::CallbackInfo& info, const ModelHandle& model) {
  Napi::Array result = Napi::Array::New(info.Env());
  for (const nn::NamedParameter& parameter : model.module->named_parameters()) {
    Napi::Object entry = Napi::Object::New(info.Env());
    const bool wide = parameter.parameter->kind == nn::ParameterKind::f32;
    entry.Set("name", parameter.name);
    entry.Set("shape", from_shape(info.Env(), parameter.shape));
    entry.Set("dtype", std::string(name_of(wide ? DType::f32 : model.weights)));
    entry.Set("trainable", parameter.trainable);
    result.Set(result.Length(), entry);
  }
  return result;
}

Napi::Value model_missing(const Napi::CallbackInfo& info, const ModelHandle& model) {
  Napi::Array result = Napi::Array::New(info.Env());
  for (const std::string& name : model.module->missing()) result.Set(result.Length(), name);
  return result;
}

Napi::Value model_load(const Napi::CallbackInfo& info, const ModelHandle& model) {
  auto items = to_load_items(info[0]);
  const auto module = model.module;
  return submit(
      info.Env(), *model.device->thread, [module, items = std::move(items)] { load_all(*module, items); },
      undefined);
}

Napi::Value model_set_trainable(const Napi::CallbackInfo& info, const ModelHandle& model) {
  const auto names = to_strings(info[0], "names");
  const auto module = model.module;
  return submit(
      info.Env(), *model.device->thread,
      [module, names] {
        const auto parameters = by_name(*module);
        for (const std::string& name : names) find(parameters, name);
        const std::unordered_set<std::string> wanted(names.begin(), names.end());
        module->set_trainable([&](const std::string& name) { return wanted.contains(name); });
      },
      undefined);
}

Napi::Value model_zero_gradients(const Napi::CallbackInfo& info, const ModelHandle& model) {
  const auto module = model.module;
  return submit(
      info.Env(), *model.device->thread, [module] { module->zero_gradients(); }, undefined);
}

Napi::Value model_read(const Napi::CallbackInfo& info, const ModelHandle& model) {
  const std::string name = to_string(info[0], "name"), what = to_string(info[1], "what");
  require(what == "value" || what == "gradient", "ERR_ARGUMENT", "what: expected value or gradient, got ",
          what);
  const auto module = model.module;
  return submit(
      info.Env(), *model.device->thread,
      [module, name, what] {
        const auto parameters = by_name(*module);
        const nn::NamedParameter& parameter = find(parameters, name);
        const Tensor tensor = what == "value" ? parameter.value() : parameter.gradient();
        require(tensor.defined(), "ERR_NAME", name, ": it has no ", what);
        return ops::to_host(tensor);
      },
      from_floats);
}

Napi::Value model_write(const Napi::CallbackInfo& info, const ModelHandle& model) {
  const std::string name = to_string(info[0], "name");
  auto values = to_floats(info[1], "values");
  const auto module = model.module;
  return submit(
      info.Env(), *model.device->thread,
      [module, name, values = std::move(values)] {
        module->load(name, DType::f32, values.data(), values.size());
      },
      undefined);
}

Napi::Value model_save(const Napi::CallbackInfo& info, const ModelHandle& model) {
  struct Item {
    std::string parameter, name;
    float scale;
  };
  const std::string path = to_string(info[0], "path");
  const Napi::Object options = to_object(info[1], "options");
  const DType dtype = dtype_from_name(to_string(field(options, "dtype"), "dtype"));
  const auto metadata = to_string_map(field(options, "metadata"), "metadata");
  const Napi::Array list = to_array(field(options, "tensors"), "tensors");
  std::vector<Item> items;
  for (std::uint32_t i = 0; i < list.Length(); ++i) {
    const Napi::Object entry = to_object(list.Get(i), "tensor");
    const Napi::Value scale = entry.Get("scale");
    items.push_back({to_string(field(entry, "parameter"), "parameter"),
                     to_string(field(entry, "name"), "name"),
                     scale.IsUndefined() ? 1.0f : static_cast<float>(to_number(scale, "scale"))});
  }
  const auto module = model.module;
  return submit(
      info.Env(), *model.device->thread,
      [module, path, dtype, metadata, items] {
        const auto parameters = by_name(*module);
        std::vector<io::TensorToWrite> tensors;
        for (const Item& item : items) {
          const nn::NamedParameter parameter = find(parameters, item.parameter);
          tensors.push_back(
              {item.name, dtype, parameter.shape, [parameter, dtype, scale = item.scale](std::byte* to) {
                 std::vector<float> values = ops::to_host(parameter.value());
                 for (float& value : values) value *= scale;
                 convert_elements(to, dtype, values.data(), DType::f32, values.size());
               }});
        }
        io::write_safetensors(path, std::move(tensors), metadata);
      },
      undefined);
}

Napi::Value model_add_lora(const Napi::CallbackInfo& info, const ModelHandle& model) {
  const Napi::Object options = to_object(info[0], "options");
  nn::LoraConfig config{int_field(options, "rank"), static_cast<float>(number_field(options, "alpha")),
                        to_strings(field(options, "modules"), "modules"),
                        to_u64(field(options, "seed"), "seed")};
  const auto module = model.module;
  return submit(
      info.Env(), *model.device->thread, [module, config] { nn::add_lora(*module, config, keyed_uniform); },
      undefined);
}

}  // namespace danceflux::addon
