// Reads test/fixtures (README.md there tells the format): cases, goldens, and the formula behind weights and
// inputs.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/json.h"
#include "nn/layers.h"
#include "nn/module.h"

namespace danceflux::test {

/// A place in a case file; throws naming the member that is not there.
class Value {
 public:
  explicit Value(const Json& json) : json_(&json) {}
  Value operator[](const std::string& name) const;
  bool has(const std::string& name) const { return json_->find(name) != nullptr; }
  bool is_null() const { return json_->is(Json::Kind::null); }
  const std::string& text() const { return json_->text(); }
  double number() const { return json_->number(); }
  int integer(const std::string& name) const { return static_cast<int>((*this)[name].number()); }
  bool flag(const std::string& name) const { return (*this)[name].json_->boolean(); }
  std::vector<Value> items() const;
  Shape shape() const;
  std::vector<float> floats() const;

 private:
  const Json* json_;
};

struct Golden {
  Shape shape;
  std::vector<double> values;
};

/// A published parameter with its numbers as the checkpoint stores them, widened.
struct CaseParameter {
  std::string name;
  Shape shape;
  std::vector<float> values;
};

struct GoldenCase {
  std::shared_ptr<const Json> tree;
  DType dtype = DType::f32;
  std::map<std::string, Golden> goldens;

  Value json() const { return Value(*tree); }
  Value config() const { return json()["config"]; }
  std::vector<Value> runs() const { return json()["runs"].items(); }
  std::vector<CaseParameter> parameters() const { return parameters(json()["parameters"]); }
  std::vector<CaseParameter> parameters(const Value& list) const;
  const Golden& golden(const Value& run, const std::string& name) const;
};

/// cases/<name>.json and goldens/<name>.safetensors
GoldenCase read_case(const std::string& name);
/// Element i is f32(offset + scale * r), r in [-1, 1) by hashing key and i.
std::vector<float> formula(const std::string& key, std::int64_t count, double offset, double scale);
/// An f32 input of a run, written out or made by the formula.
std::vector<float> input_values(const Value& run, const std::string& name);
std::vector<std::int32_t> input_ids(const Value& run, const std::string& name);
Shape input_shape(const Value& run, const std::string& name);
Tensor input_tensor(Backend& device, const Value& run, const std::string& name);

/// Materialises `model` in the case's dtype and loads every parameter, in that dtype; nothing may be missing.
void load_case(nn::Module& model, Backend& device, const GoldenCase& source);
/// The same, stored in `dtype`.
void load_case(nn::Module& model, Backend& device, const GoldenCase& source, DType dtype);

/// ||got - wanted|| / ||wanted||, or ||got|| when all wanted numbers are 0.
double relative_error(const std::vector<float>& got, const std::vector<double>& wanted);
double relative_error(const Tensor& got, const Golden& wanted);

/// What models are tested on: the CPU and more_test_devices() (op_readers.h), or what DANCEFLUX_TEST_BACKEND
/// names.
std::vector<std::shared_ptr<Backend>> model_devices();
std::shared_ptr<Backend> cpu_device(int threads = 2);

}  // namespace danceflux::test
