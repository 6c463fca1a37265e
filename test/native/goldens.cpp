#include "goldens.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "backend/cpu/cpu_backend.h"
#include "harness.h"
#include "io/tensor_file.h"
#include "op_readers.h"
#include "ops/ops.h"
#include "reference_backend.h"

namespace danceflux::test {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("ERR_FILE", "fixtures: cannot read ", path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::map<std::string, Golden> read_goldens(const std::string& path) {
  const auto file = io::open_tensor_file(path);
  std::map<std::string, Golden> goldens;
  for (const io::FileTensor& tensor : file->tensors()) {
    Golden& golden = goldens[tensor.name] = {tensor.shape, {}};
    golden.values.resize(static_cast<std::size_t>(tensor.shape.numel()));
    if (!is_float(tensor.dtype)) continue;  // bytes and integers are compared elsewhere
    io::read_rows(tensor, 0, -1, false, DType::f64, golden.values.data());
  }
  return goldens;
}

std::uint32_t fmix32(std::uint32_t x) {
  x = (x ^ (x >> 16)) * 0x85ebca6bu;
  x = (x ^ (x >> 13)) * 0xc2b2ae35u;
  return x ^ (x >> 16);
}

Value input(const Value& run, const std::string& name) {
  for (const Value& entry : run["inputs"].items()) {
    if (entry["name"].text() == name) return entry;
  }
  fail("ERR_FILE", "fixtures: no input ", name);
}

std::vector<float> rounded(std::vector<float> values, DType dtype) {
  std::vector<char> stored(values.size() * size_of(dtype));
  convert_elements(stored.data(), dtype, values.data(), DType::f32, values.size());
  convert_elements(values.data(), DType::f32, stored.data(), dtype, values.size());
  return values;
}

}  // namespace

// ---- cases
// -------------------------------------------------------------------------------------------------

Value Value::operator[](const std::string& name) const {
  const Json* member = json_->find(name);
  if (!member) fail("ERR_FILE", "fixtures: no member ", name);
  return Value(*member);
}

std::vector<Value> Value::items() const { return {json_->items().begin(), json_->items().end()}; }

Shape Value::shape() const {
  Shape shape;
  for (const Value& item : items()) shape.push_back(static_cast<std::int64_t>(item.number()));
  return shape;
}

std::vector<float> Value::floats() const {
  std::vector<float> values;
  for (const Value& item : items()) values.push_back(static_cast<float>(item.number()));
  return values;
}

GoldenCase read_case(const std::string& name) {
  const std::string folder = DANCEFLUX_FIXTURES;
  const std::string text = read_file(folder + "/cases/" + name + ".json");
  GoldenCase result{.tree = std::make_shared<Json>(Json::parse(text, "ERR_FILE", name)),
                    .dtype = DType::f32,
                    .goldens = read_goldens(folder + "/goldens/" + name + ".safetensors")};
  result.dtype = dtype_from_name(result.json()["dtype"].text());
  return result;
}

std::vector<CaseParameter> GoldenCase::parameters(const Value& list) const {
  std::vector<CaseParameter> all;
  for (const Value& entry : list.items()) {
    const Shape shape = entry["shape"].shape();
    const auto values =
        formula(entry["name"].text(), shape.numel(), entry["offset"].number(), entry["scale"].number());
    all.push_back({entry["name"].text(), shape, rounded(values, dtype)});
  }
  return all;
}

const Golden& GoldenCase::golden(const Value& run, const std::string& name) const {
  const auto found = goldens.find(run["name"].text() + "/" + name);
  if (found == goldens.end()) fail("ERR_FILE", "fixtures: no golden ", run["name"].text(), "/", name);
  return found->second;
}

std::vector<float> formula(const std::string& key, std::int64_t count, double offset, double scale) {
  std::uint32_t seed = 0x811c9dc5u;
  for (const char byte : key) seed = (seed ^ static_cast<unsigned char>(byte)) * 0x01000193u;
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t word = fmix32(seed ^ fmix32(static_cast<std::uint32_t>(i + 1)));
    values.push_back(static_cast<float>(offset + scale * ((word >> 8) * 0x1p-24 * 2 - 1)));
  }
  return values;
}

std::vector<float> input_values(const Value& run, const std::string& name) {
  const Value& entry = input(run, name);
  if (entry.has("values")) return entry["values"].floats();
  return formula(entry["key"].text(), entry["shape"].shape().numel(), entry["offset"].number(),
                 entry["scale"].number());
}

std::vector<std::int32_t> input_ids(const Value& run, const std::string& name) {
  std::vector<std::int32_t> ids;
  for (const Value& item : input(run, name)["values"].items())
    ids.push_back(static_cast<std::int32_t>(item.number()));
  return ids;
}

Shape input_shape(const Value& run, const std::string& name) { return input(run, name)["shape"].shape(); }

Tensor input_tensor(Backend& device, const Value& run, const std::string& name) {
  return ops::from_host(device, input_shape(run, name), input_values(run, name));
}

void load_case(nn::Module& model, Backend& device, const GoldenCase& source) {
  // Goldens are made in f32 from weights that are stored in this dtype; a device that would keep activations
  // in it gets the same numbers in f32.
  load_case(model, device, source,
            device.activation_dtype(source.dtype) == DType::f32 ? source.dtype : DType::f32);
}

void load_case(nn::Module& model, Backend& device, const GoldenCase& source, DType dtype) {
  model.materialize(device, dtype);
  for (const CaseParameter& parameter : source.parameters()) {
    std::vector<char> stored(parameter.values.size() * size_of(dtype));
    convert_elements(stored.data(), dtype, parameter.values.data(), DType::f32, parameter.values.size());
    model.load(parameter.name, dtype, stored.data(), parameter.values.size());
  }
  CHECK_EQ(model.missing().size(), std::size_t{0});
}

// ---- comparing
// ---------------------------------------------------------------------------------------------

double relative_error(const std::vector<float>& got, const std::vector<double>& wanted) {
  CHECK_EQ(got.size(), wanted.size());
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - wanted[i]) * (got[i] - wanted[i]);
    norm += wanted[i] * wanted[i];
  }
  return std::sqrt(norm == 0 ? difference : difference / norm);
}

double relative_error(const Tensor& got, const Golden& wanted) {
  CHECK_EQ(got.shape(), wanted.shape);
  return relative_error(ops::to_host(got), wanted.values);
}

std::shared_ptr<Backend> cpu_device(int threads) { return cpu::open_cpu({.threads = threads, .isa = {}}); }

std::vector<std::shared_ptr<Backend>> model_devices() {
  if (std::getenv("DANCEFLUX_TEST_BACKEND")) return {test_devices().front().device};
  std::vector<std::shared_ptr<Backend>> devices{cpu_device()};
  for (const auto& open : more_test_devices()) devices.push_back(open().device);
  return devices;
}

}  // namespace danceflux::test
