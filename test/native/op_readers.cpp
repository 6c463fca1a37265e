#include "op_readers.h"

#include <algorithm>
#include <cstdlib>

#include "backend/cpu/isa_select.h"
#include "backend/registry.h"
#include "harness.h"
#include "reference_backend.h"

namespace danceflux::test {

std::shared_ptr<Backend> open_by_name(const std::string& name) {
  if (name == "reference") return std::make_shared<ReferenceBackend>();
  const auto colon = name.find(':');
  const int index = colon == std::string::npos ? 0 : std::stoi(name.substr(colon + 1));
  const char* options = std::getenv("DANCEFLUX_TEST_OPTIONS");
  return open_backend(name.substr(0, colon), index, options ? options : "{}");
}

std::vector<TestDevice> test_devices() {
  if (const char* name = std::getenv("DANCEFLUX_TEST_BACKEND")) return {{name, open_by_name(name)}};
  std::vector<TestDevice> devices;
  for (const cpu::IsaKernels& isa : cpu::available_isas()) {
    const std::string name = isa.name;
    devices.push_back({"cpu/" + name, open_backend("cpu", 0, "{\"threads\": 2, \"isa\": \"" + name + "\"}")});
  }
  for (const auto& open : more_test_devices()) devices.push_back(open());
  return devices;
}

std::vector<std::function<TestDevice()>>& more_test_devices() {
  static std::vector<std::function<TestDevice()>> all;
  return all;
}

std::vector<OpCase> all_cases() {
  std::vector<OpCase> rows = op_cases(), more = bf16_cases();
  rows.insert(rows.end(), more.begin(), more.end());
  return rows;
}

bool takes(Backend& device, const OpCase& row) {
  return row.activations == DType::f32 || device.activation_dtype(row.activations) == row.activations;
}

void Complaints::finish() const {
  if (count_) throw Failure(std::to_string(count_) + " of them wrong:" + text_.str());
}

std::vector<double> values_of(const Tensor& x) {
  if (dynamic_cast<ReferenceBackend*>(&backend_of(x))) return ReferenceBackend::read(x);
  const std::vector<float> values = ops::to_host(x);
  return {values.begin(), values.end()};
}

Columns forward_values(Backend& device, const OpCase& row) {
  const std::vector<Tensor> inputs = make_inputs(device, row);
  Columns columns;
  for (const Tensor& result : row.forward(inputs)) columns.push_back(values_of(result));
  return columns;
}

double result_rounding(Backend& device, const OpCase& row) {
  const auto results = row.forward(make_inputs(device, row));
  double rounding = 0;
  for (const Tensor& result : results) rounding = std::max(rounding, rounding_of(result.dtype()));
  return rounding;
}

Tensor seed_for(const OpCase& row, std::size_t output, const Tensor& result) {
  const auto values = normal_stream(row.name + "/seed" + std::to_string(output), result.numel());
  return ops::from_host(backend_of(result), result.shape(), values, result.dtype());
}

namespace {

/// One backward over `row`, which leaves the gradients on `tape`.
void run_backward(Tape& tape, const OpCase& row, std::span<const Tensor> inputs) {
  const std::vector<Tensor> results = row.forward(inputs);
  std::vector<Tensor> seeds;
  for (std::size_t i = 0; i < results.size(); ++i) seeds.push_back(seed_for(row, i, results[i]));
  tape.backward(results, seeds);
}

}  // namespace

Columns gradient_values(Backend& device, const OpCase& row, Into into) {
  const std::vector<Tensor> inputs = make_inputs(device, row);
  std::vector<Tensor> sums(inputs.size());
  for (const bool last : {false, true}) {
    if (into == Into::fresh && !last) continue;
    Tape tape;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (!row.inputs[i].gradient) continue;
      if (into == Into::accumulated && !sums[i]) sums[i] = ops::full(device, inputs[i].shape(), 0);
      tape.watch(inputs[i], sums[i]);
    }
    run_backward(tape, row, inputs);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (row.inputs[i].gradient) sums[i] = tape.gradient(inputs[i]);
    }
  }
  Columns columns;
  for (const Tensor& sum : sums) {
    columns.push_back(sum ? values_of(sum) : std::vector<double>());
    for (double& value : columns.back()) value *= into == Into::fresh ? 1 : 0.5;
  }
  return columns;
}

}  // namespace danceflux::test
