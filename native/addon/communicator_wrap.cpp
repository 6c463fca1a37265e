#include "addon/communicator_wrap.h"

#include "addon/convert.h"
#include "addon/environment.h"
#include "backend/communicator.h"
#include "backend/registry.h"

namespace danceflux::addon {
namespace {

/// What a communicator's jobs share. They start on the device's thread, as its stream's order says, and wait
/// on a thread of the communicator, beside what the device does meanwhile.
struct CommunicatorState {
  std::shared_ptr<OpenDevice> device;
  std::shared_ptr<Communicator> communicator;
  std::shared_ptr<DeviceThread> waiter = std::make_shared<DeviceThread>();
  std::atomic<int> under_way{0};

  void end(const char* reason) {
    if (under_way > 0) communicator->abort(reason);
    waiter->stop();
  }
};

/// Lives as long as a collective is under way.
class UnderWay {
 public:
  explicit UnderWay(std::shared_ptr<CommunicatorState> state) : state_(std::move(state)) {
    ++state_->under_way;
  }
  ~UnderWay() { --state_->under_way; }
  UnderWay(const UnderWay&) = delete;
  UnderWay& operator=(const UnderWay&) = delete;
  CommunicatorState* operator->() const { return state_.get(); }

 private:
  std::shared_ptr<CommunicatorState> state_;
};

ReduceArgs to_reduce(const Napi::Value& value) {
  const Napi::Object options = to_object(value, "options");
  const std::string op = to_string(field(options, "op"), "op");
  require(op == "sum" || op == "max", "ERR_ARGUMENT", "op: expected sum or max, got ", op);
  return {op == "sum" ? CollectiveReduce::sum : CollectiveReduce::max,
          to_bool(field(options, "ordered"), "ordered")};
}

class CommunicatorWrap : public Napi::ObjectWrap<CommunicatorWrap> {
 public:
  explicit CommunicatorWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<CommunicatorWrap>(info) {}
  ~CommunicatorWrap() override {
    if (!state_) return;
    ++live().collected;
    let_go("the communicator's handle was lost");
  }

  static void define(Napi::Env env) {
    using W = CommunicatorWrap;
    Environment::of(env).keep(
        "Communicator",
        DefineClass(
            env, "NativeCommunicator",
            {InstanceAccessor<&W::rank>("rank"), InstanceAccessor<&W::size>("size"),
             InstanceAccessor<&W::description>("description"), InstanceMethod<&W::all_reduce>("allReduce"),
             InstanceMethod<&W::reduce_scatter>("reduceScatter"), InstanceMethod<&W::all_gather>("allGather"),
             InstanceMethod<&W::broadcast>("broadcast"), InstanceMethod<&W::barrier>("barrier"),
             InstanceMethod<&W::abort>("abort"), InstanceMethod<&W::heard>("heard"),
             InstanceAccessor<&W::reached>("reached"), InstanceMethod<&W::dispose>("dispose")}));
  }

  static Napi::Value make(Napi::Env env, const std::shared_ptr<OpenDevice>& device,
                          std::shared_ptr<Communicator> communicator) {
    Napi::Object object = Environment::of(env).construct("Communicator");
    auto state = std::make_shared<CommunicatorState>();
    state->device = device;
    state->communicator = std::move(communicator);
    device->at_end.push_back([weak = std::weak_ptr(state)] {
      if (const auto left = weak.lock()) left->end("the device was disposed");
    });
    Unwrap(object)->state_ = std::move(state);
    ++live().communicators;
    return object;
  }

  const std::shared_ptr<CommunicatorState>& alive() const {
    require(state_ != nullptr, "ERR_DISPOSED", "communicator: it was disposed");
    return state_;
  }

 private:
  void let_go(const char* reason) {
    state_->end(reason);
    state_ = nullptr;
    --live().communicators;
  }

  Napi::Value rank(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] { return Napi::Number::New(info.Env(), alive()->communicator->rank()); });
  }
  Napi::Value size(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] { return Napi::Number::New(info.Env(), alive()->communicator->size()); });
  }
  Napi::Value description(const Napi::CallbackInfo& info) {
    return guarded(info.Env(),
                   [&] { return Napi::String::New(info.Env(), alive()->communicator->description()); });
  }

  /// Runs start(Communicator&) -> Event as a job that is done when the event is.
  template <class Start>
  Napi::Value run(Napi::Env env, Start start) {
    const auto state = alive();
    auto job = std::make_shared<Job>();
    job->result = undefined;
    // Other devices than the CPU wait in their stream and not here, so the thread is not held up.
    const bool wait_elsewhere = state->device->backend->name() == "cpu";
    job->work = [job = job.get(), wait_elsewhere, start = std::move(start),
                 call = std::make_shared<UnderWay>(state)] {
      const Event event = start(*(*call)->communicator);
      auto wait = [call, event] { (*call)->device->backend->wait(event); };
      if (!wait_elsewhere) return wait();
      job->rest = std::move(wait);
      job->rest_on = (*call)->waiter;
    };
    return start_job(env, *state->device->thread, std::move(job));
  }

  Napi::Value all_reduce(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const Tensor tensor = TensorWrap::unwrap(info[0], "tensor");
      const ReduceArgs args = to_reduce(info[1]);
      return run(info.Env(), [tensor, args](Communicator& communicator) {
        return communicator.all_reduce(tensor, args);
      });
    });
  }

  Napi::Value reduce_scatter(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const Tensor output = TensorWrap::unwrap(info[0], "output"),
                   input = TensorWrap::unwrap(info[1], "input");
      const ReduceArgs args = to_reduce(info[2]);
      return run(info.Env(), [output, input, args](Communicator& communicator) {
        return communicator.reduce_scatter(output, input, args);
      });
    });
  }

  Napi::Value all_gather(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const Tensor output = TensorWrap::unwrap(info[0], "output"),
                   input = TensorWrap::unwrap(info[1], "input");
      return run(info.Env(), [output, input](Communicator& communicator) {
        return communicator.all_gather(output, input);
      });
    });
  }

  Napi::Value broadcast(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const Tensor tensor = TensorWrap::unwrap(info[0], "tensor");
      const std::int64_t root = to_integer(info[1], "root");
      require(root >= 0 && root < alive()->communicator->size(), "ERR_ARGUMENT",
              "broadcast: expected a root from 0 to ", alive()->communicator->size() - 1, ", got ", root);
      return run(info.Env(), [tensor, root](Communicator& communicator) {
        return communicator.broadcast(tensor, static_cast<int>(root));
      });
    });
  }

  Napi::Value barrier(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      return run(info.Env(), [](Communicator& communicator) { return communicator.barrier(); });
    });
  }

  void abort(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      const std::string reason = to_string(info[0], "reason");
      alive()->communicator->abort(reason);
    });
  }

  Napi::Value reached(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const std::uint64_t calls = alive()->communicator->progress.reached();
      return Napi::Number::New(info.Env(), static_cast<double>(calls));
    });
  }

  void heard(const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      const std::int64_t least = to_integer(info[0], "least");
      require(least >= 0, "ERR_ARGUMENT", "least: expected 0 or more, got ", least);
      const Napi::Array array = to_array(info[1], "ranks");
      std::vector<int> ranks;
      for (std::uint32_t i = 0; i < array.Length(); ++i)
        ranks.push_back(static_cast<int>(to_integer(array.Get(i), "ranks")));
      alive()->communicator->progress.heard(static_cast<std::uint64_t>(least), std::move(ranks));
    });
  }

  void dispose(const Napi::CallbackInfo&) {
    if (state_) let_go("the communicator was disposed");
  }

  std::shared_ptr<CommunicatorState> state_;
};

/// Offers and connects on a thread of its own: connecting takes as long as the slowest rank, and the device
/// has better things to do.
class SetupWrap : public Napi::ObjectWrap<SetupWrap> {
 public:
  explicit SetupWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<SetupWrap>(info) {}
  ~SetupWrap() override {
    if (!state_) return;
    ++live().collected;
    let_go();
  }

  static void define(Napi::Env env) {
    using W = SetupWrap;
    Environment::of(env).keep("CommunicatorSetup", DefineClass(env, "NativeCommunicatorSetup",
                                                               {InstanceMethod<&W::offer>("offer"),
                                                                InstanceMethod<&W::connect>("connect"),
                                                                InstanceMethod<&W::dispose>("dispose")}));
  }

  static Napi::Value make(Napi::Env env, const std::shared_ptr<OpenDevice>& device,
                          std::unique_ptr<CommunicatorSetup> setup) {
    Napi::Object object = Environment::of(env).construct("CommunicatorSetup");
    auto state = std::make_shared<State>();
    state->device = device;
    state->setup = std::move(setup);
    device->at_end.push_back([weak = std::weak_ptr(state)] {
      if (const auto left = weak.lock()) left->thread->stop();
    });
    Unwrap(object)->state_ = std::move(state);
    ++live().communicators;
    return object;
  }

 private:
  struct State {
    std::shared_ptr<OpenDevice> device;
    std::unique_ptr<CommunicatorSetup> setup;
    std::shared_ptr<DeviceThread> thread = std::make_shared<DeviceThread>();
  };

  const std::shared_ptr<State>& alive() const {
    require(state_ != nullptr, "ERR_DISPOSED", "communicator: its setup was disposed");
    return state_;
  }

  void let_go() {
    state_->thread->stop();
    state_ = nullptr;
    --live().communicators;
  }

  Napi::Value offer(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      return submit(
          info.Env(), *alive()->thread, [state = alive()] { return state->setup->offer(); },
          [](Napi::Env env, const std::string& bytes) {
            Napi::Uint8Array array = Napi::Uint8Array::New(env, bytes.size());
            std::copy(bytes.begin(), bytes.end(), array.Data());
            return array;
          });
    });
  }

  Napi::Value connect(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const Napi::Array array = to_array(info[0], "offers");
      std::vector<std::string> offers;
      for (std::uint32_t i = 0; i < array.Length(); ++i) {
        const Napi::Value value = array.Get(i);
        require(value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_uint8_array,
                "ERR_ARGUMENT", "offers: expected Uint8Arrays");
        const auto bytes = value.As<Napi::Uint8Array>();
        require(bytes.ElementLength() <= 65536, "ERR_ARGUMENT", "offers: expected at most 65536 bytes, got ",
                bytes.ElementLength());
        offers.emplace_back(reinterpret_cast<const char*>(bytes.Data()), bytes.ElementLength());
      }
      const auto state = alive();
      return submit(
          info.Env(), *state->thread,
          [state, offers = std::move(offers)] {
            return std::shared_ptr<Communicator>(state->setup->connect(offers));
          },
          [device = state->device](Napi::Env env, const std::shared_ptr<Communicator>& communicator) {
            return CommunicatorWrap::make(env, device, communicator);
          });
    });
  }

  void dispose(const Napi::CallbackInfo&) {
    if (state_) let_go();
  }

  std::shared_ptr<State> state_;
};

}  // namespace

void define_communicators(Napi::Env env) {
  CommunicatorWrap::define(env);
  SetupWrap::define(env);
}

Napi::Value make_communicator(const Napi::CallbackInfo& info, const std::shared_ptr<OpenDevice>& device) {
  const Napi::Object object = to_object(info[0], "options");
  const std::string engine = to_string(field(object, "engine"), "engine");
  CommunicatorOptions options;
  options.rank = int_field(object, "rank");
  options.size = int_field(object, "size");
  options.timeout_seconds = number_field(object, "timeoutSeconds");
  options.engine_options = to_string(field(object, "engineOptions"), "engineOptions");
  return SetupWrap::make(info.Env(), device, make_communicator_setup(engine, device->backend, options));
}

std::shared_ptr<Communicator> communicator_of(const Napi::Object& object) {
  require(Environment::of(object.Env()).is_instance(object, "Communicator"), "ERR_ARGUMENT",
          "communicator: expected a communicator's handle");
  return CommunicatorWrap::Unwrap(object)->alive()->communicator;
}

}  // namespace danceflux::addon
