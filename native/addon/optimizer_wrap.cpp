// Optimizers that JavaScript holds.
#include <algorithm>

#include "addon/communicator_wrap.h"
#include "addon/model_wrap.h"
#include "addon/models.h"
#include "train/optimizer.h"

namespace danceflux::addon {
namespace {

Napi::Object from_report(Napi::Env env, const train::StepReport& report) {
  const train::SyncReport& sync = report.sync;
  Napi::Object communication = Napi::Object::New(env), memory = Napi::Object::New(env),
               result = Napi::Object::New(env);
  communication.Set("secondsInFlight", sync.seconds_in_flight);
  communication.Set("secondsWaited", sync.seconds_waited);
  communication.Set("bytes", static_cast<double>(sync.bytes));
  communication.Set("collectives", sync.collectives);
  communication.Set("overlapped", sync.overlapped);
  memory.Set("gradients", static_cast<double>(sync.gradient_bytes));
  memory.Set("state", static_cast<double>(report.state_bytes));
  result.Set("gradientNorm", report.gradient_norm);
  result.Set("skipped", report.skipped);
  result.Set("step", static_cast<double>(report.step));
  result.Set("communication", communication);
  result.Set("memory", memory);
  return result;
}

/// Without a communicator: one rank.
train::SyncOptions to_sync_options(const Napi::Object& options) {
  train::SyncOptions sync;
  const auto given = [&](const char* name) { return !options.Get(name).IsUndefined(); };
  if (given("communicator")) {
    sync.communicator = communicator_of(to_object(options.Get("communicator"), "communicator"));
  }
  if (given("sharding")) {
    sync.sharding = train::sharding_from_name(to_string(options.Get("sharding"), "sharding"));
  }
  if (given("bucketMiB")) {
    const double mib = number_field(options, "bucketMiB");
    require(mib > 0 && mib <= 1 << 20, "ERR_ARGUMENT",
            "bucketMiB: expected more than 0 and at most 2^20, got ", mib);
    sync.bucket_bytes = std::max<std::int64_t>(1, static_cast<std::int64_t>(mib * (1 << 20)));
  }
  if (given("ordered")) sync.ordered = to_bool(options.Get("ordered"), "ordered");
  if (given("overlap")) sync.overlap = to_bool(options.Get("overlap"), "overlap");
  return sync;
}

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
                                 {InstanceMethod<&W::prepare>("prepare"),
                                  InstanceMethod<&W::settle>("settle"), InstanceMethod<&W::step>("step"),
                                  InstanceMethod<&W::swap_ema>("swapEma"), InstanceMethod<&W::save>("save"),
                                  InstanceMethod<&W::load>("load"), InstanceMethod<&W::dispose>("dispose"),
                                  InstanceMethod<&W::dispose>(dispose_symbol(env))}));
  }

  static Napi::Value make(Napi::Env env, const ModelHandle& model, const train::OptimizerOptions& options,
                          const train::SyncOptions& sync) {
    Napi::Object object = Environment::of(env).construct("Optimizer");
    Unwrap(object)->state_ =
        std::make_shared<State>(State{model.device, model.module, options, sync, nullptr});
    ++live().optimizers;
    return object;
  }

 private:
  struct State {
    std::shared_ptr<OpenDevice> device;
    std::shared_ptr<nn::Module> module;
    train::OptimizerOptions options;
    train::SyncOptions sync;
    std::unique_ptr<train::Optimizer> optimizer;

    /// Made by the first job, on the device's thread, of the parameters that train then.
    train::Optimizer& ready() {
      if (!optimizer) {
        optimizer = std::make_unique<train::Optimizer>(train::GradientSync::attach(*module, sync), options);
      }
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

  Napi::Value settle(const Napi::CallbackInfo& info) {
    return run(
        info.Env(), [](train::Optimizer& optimizer) { optimizer.settle(); }, undefined);
  }

  Napi::Value step(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const double rate = to_number(info[0], "learningRate");
      const double clip = to_number(info[1], "clipNorm");
      return run(
          info.Env(), [rate, clip](train::Optimizer& optimizer) { return optimizer.step(rate, clip); },
          from_report);
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
      const auto paths =
          info[0].IsArray() ? to_strings(info[0], "paths") : std::vector{to_string(info[0], "path")};
      return run(
          info.Env(), [paths](train::Optimizer& optimizer) { optimizer.load(paths); }, undefined);
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
      {number("beta1"), number("beta2"), number("eps"), number("weightDecay"), number("emaDecay")},
      to_sync_options(options));
}

void define_models(Napi::Env env) {
  define_flux(env);
  define_encoders(env);
  define_vae(env);
  define_optimizer(env);
}

}  // namespace danceflux::addon
