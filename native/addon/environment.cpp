#include "addon/environment.h"

namespace danceflux::addon {

Environment& Environment::of(Napi::Env env) {
  auto* environment = env.GetInstanceData<Environment>();
  if (!environment) {
    environment = new Environment(env);
    env.SetInstanceData(environment);
  }
  return *environment;
}

void Environment::keep(const std::string& name, const Napi::Function& constructor) {
  classes_[name] = Napi::Persistent(constructor);
}

Napi::Object Environment::construct(const std::string& name) const { return classes_.at(name).New({}); }

bool Environment::is_instance(const Napi::Object& object, const std::string& name) const {
  return object.InstanceOf(classes_.at(name).Value());
}

}  // namespace danceflux::addon
