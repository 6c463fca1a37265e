// Optimizers that JavaScript holds.
#include "addon/model_wrap.h"
#include "addon/models.h"
#include "train/optimizer.h"

namespace danceflux::addon {
namespace {

class OptimizerWrap : public Napi::ObjectWrap<OptimizerWrap> {
 public:
  explicit OptimizerWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<OptimizerWrap>(info) {}
  ~OptimizerWrap() override {
    if (!state_) return;
    ++live().collected;
    --live().optimizers;
  }

  static void define(Napi::Env env) {
    using W = OptimizerWrap;
    Environment::of(env).keep(
        "Optimizer", DefineClass(env, "NativeOptimizer",
                                 {InstanceMethod<&W::prepare>("prepare"), InstanceMethod<&W::step>("step"),
                                  InstanceMethod<&W::swap_ema>("swapEma"), InstanceMethod<&W::save>("save"),
                                  InstanceMethod<&W::load>("load"), InstanceMethod<&W::dispose>("dispose"),
                                  InstanceMethod<&W::dispose>(dispose_symbol(env))}));
  }

  static Napi::Value make(Napi::Env env, const ModelHandle& model, const train::OptimizerOptions& options) {
    Napi::Object object = Environment::of(env).construct("Optimizer");
    Unwrap(object)->state_ = std::make_shared<State>(State{model.device, model.module, options, nullptr});
    ++live().optimizers;
    return object;
  }

 private:
  struct State {
    std::shared_ptr<OpenDevice> device;
    std::shared_ptr<nn::Module> module;
    train::OptimizerOptions options;
    std::unique_ptr<train::Optimizer> optimizer;

    /// Made by the first job, on the device's thread, of the parameters that train then.
    train::Optimizer& ready() {
      if (optimizer) return *optimizer;
      Tape unused;  // makes the gradients
      module->watch(unused);
      std::vector<train::TrainedParameter> trained;
      for (const nn::NamedParameter& parameter : module->trainable_parameters()) {
        trained.push_back({parameter.name, parameter.value(), parameter.gradient()});
      }
      require(!trained.empty(), "ERR_OPTION", "optimizer: expected at least one trainable parameter");
      optimizer = std::make_unique<train::Optimizer>(std::move(trained), options);
      return *optimizer;
    }
  };

  /// Runs work(Optimizer&) as a job.
  template <class Work, class Convert>
  Napi::Value run(Napi::Env env, Work work, Convert convert) {
    return guarded(env, [&] {
      require(state_ != nullptr, "ERR_DISPOSED", "optimizer: it was disposed");
      return submit(
          env, *state_->device->thread,
          [state = state_, work = std::move(work)] { return work(state->ready()); }, convert);
    });
  }

  Napi::Value prepare(const Napi::CallbackInfo& info) {
    return run(
        info.Env(), [](train::Optimizer&) {}, undefined);
  }

  Napi::Value step(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const double rate = to_number(info[0], "learningRate");
      const double clip = to_number(info[1], "clipNorm");
      return run(
          info.Env(), [rate, clip](train::Optimizer& optimizer) { return optimizer.step(rate, clip); },
          [](Napi::Env env, const train::StepReport& report) {
            Napi::Object result = Napi::Object::New(env);
            result.Set("gradientNorm", report.gradient_norm);
            result.Set("skipped", report.skipped);
            result.Set("step", static_cast<double>(report.step));
            return result;
          });
    });
  }

  Napi::Value swap_ema(const Napi::CallbackInfo& info) {
    return run(
        info.Env(), [](train::Optimizer& optimizer) { optimizer.swap_average(); }, undefined);
  }

  Napi::Value save(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const std::string path = to_string(info[0], "path");
      return run(
          info.Env(), [path](train::Optimizer& optimizer) { optimizer.save(path); }, undefined);
    });
  }

  Napi::Value load(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const std::string path = to_string(info[0], "path");
      return run(
          info.Env(), [path](train::Optimizer& optimizer) { optimizer.load(path); }, undefined);
    });
  }

  void dispose(const Napi::CallbackInfo&) {
    if (!state_) return;
    state_ = nullptr;
    --live().optimizers;
  }

  std::shared_ptr<State> state_;
};

}  // namespace

void define_optimizer(Napi::Env env) { OptimizerWrap::define(env); }

Napi::Value make_optimizer(const Napi::CallbackInfo& info, const DevicePointer&) {
  const ModelHandle* found = info[0].IsObject() ? flux_handle(info[0].As<Napi::Object>()) : nullptr;
  require(found != nullptr, "ERR_ARGUMENT", "model: expected a transformer's handle");
  const ModelHandle model =
      *found;  // reading the options may run JavaScript, which may dispose the model's handle
  const Napi::Object options = to_object(info[1], "options");
  const auto number = [&](const char* name) { return number_field(options, name); };
  return OptimizerWrap::make(
      info.Env(), model,
      {number("beta1"), number("beta2"), number("eps"), number("weightDecay"), number("emaDecay")});
}

void define_models(Napi::Env env) {
  define_flux(env);
  define_encoders(env);
  define_vae(env);
  define_optimizer(env);
}

}  // namespace danceflux::addon
