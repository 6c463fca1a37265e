// What one JavaScript environment (the main thread, a worker) keeps: the home of its jobs and its classes.
// Several environments may share the loaded library, so none of this is static.
#pragma once
#include <napi.h>

#include <map>
#include <memory>
#include <string>

#include "addon/job.h"

namespace danceflux::addon {

class Environment {
 public:
  /// Made on first use; ends with the environment, stopping its jobs.
  static Environment& of(Napi::Env env);
  explicit Environment(Napi::Env env) : jobs(std::make_shared<JobHome>(env)) {}
  ~Environment() { jobs->cancel_all(); }

  void keep(const std::string& name, const Napi::Function& constructor);
  Napi::Object construct(const std::string& name) const;
  bool is_instance(const Napi::Object& object, const std::string& name) const;

  const std::shared_ptr<JobHome> jobs;

 private:
  std::map<std::string, Napi::FunctionReference> classes_;
};

/// Symbol.dispose: the name under which `using handle = ...` finds a handle's dispose().
inline Napi::Symbol dispose_symbol(Napi::Env env) { return Napi::Symbol::WellKnown(env, "dispose"); }

}  // namespace danceflux::addon
