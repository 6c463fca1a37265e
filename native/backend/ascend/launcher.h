// The two phases of an aclnn operator in one place: plan (which checks, and tells the workspace and an
// executor), take a workspace from the pool, launch (which consumes the executor).
#pragma once
#include <functional>
#include <list>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "backend/ascend/handles.h"
#include "backend/ascend/npu.h"
#include "backend/pool.h"

namespace danceflux::ascend {

class Launcher {
 public:
  Launcher(std::shared_ptr<Npu> npu, Pool& pool, const Settings& settings);
  ~Launcher();
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  /// Launches `call` with `arguments` in the order of its signature (handles.h says what they may be), as a
  /// part of the contract's op `op`. Throws what CANN says with the op, the operator and the shapes.
  template <class... Parameters, class... Arguments>
  void operator()(const char* op, const Operator<void(Parameters...)>& call, const Arguments&... arguments) {
    static_assert(sizeof...(Parameters) == sizeof...(Arguments), "an argument for each parameter");
    require_found(op, call);
    npu_->bind();
    std::tuple<Argument<Parameters>...> handles(Given<Arguments>{npu_->acl(), arguments}...);
    launch(op, call, handles, std::index_sequence_for<Parameters...>());
  }

  /// While it lives, operators go to another stream, and the memory that they work in is kept in `kept`: the
  /// pool would hand it to operators of the device's own stream, which do not wait for it.
  class OtherStream {
   public:
    OtherStream(Launcher& launcher, AclStream stream, std::vector<std::pair<void*, std::size_t>>& kept)
        : launcher_(launcher), stream_(launcher.stream_), kept_(launcher.kept_) {
      launcher.stream_ = stream;
      launcher.kept_ = &kept;
    }
    ~OtherStream() {
      launcher_.stream_ = stream_;
      launcher_.kept_ = kept_;
    }
    OtherStream(const OtherStream&) = delete;
    OtherStream& operator=(const OtherStream&) = delete;

   private:
    Launcher& launcher_;
    AclStream stream_;
    std::vector<std::pair<void*, std::size_t>>* kept_;
  };

  /// Names of the last operators launched, oldest first: what a failure that shows later may have come from.
  std::string recent() const;
  std::size_t cached() const { return planned_.size(); }
  /// How often a planned operator was used again.
  std::uint64_t reused() const { return reused_; }

 private:
  /// A planned operator that may be launched again, with the descriptors that its addresses are set by.
  struct Planned {
    aclOpExecutor* executor;
    std::uint64_t workspace;
    std::vector<TensorArgument> tensors;
    std::list<std::string>::iterator age;
  };
  /// A tensor argument of a call: where it is among inputs or outputs.
  struct Place {
    TensorArgument* argument;
    bool input;
  };

  template <class Call, class Handles, std::size_t... I>
  void launch(const char* op, const Call& call, Handles& handles, std::index_sequence<I...>) {
    const auto tell = [&](std::ostream& text) { (tell_one(text, I, std::get<I>(handles)), ...); };
    std::string key;
    std::vector<Place> places;
    if (cache_limit_ > 0 && (... && std::get<I>(handles).present())) {
      key.append(call.name).push_back('\0');
      key.append(reinterpret_cast<const char*>(&level_), sizeof level_);
      (std::get<I>(handles).key(key), ...);
      (add_place(places, std::get<I>(handles)), ...);
      // One that reads what it writes counts the same tensor on both sides, in an order that is not told.
      if (places.empty() || !places.front().input) key.clear();
    }
    if (!key.empty() && launch_planned(op, call, key, places, tell)) return;
    std::uint64_t workspace = 0;
    aclOpExecutor* executor = nullptr;
    const auto plan = reinterpret_cast<typename Call::Plan>(call.plan);
    const AclStatus status = plan(std::get<I>(handles).raw()..., &workspace, &executor);
    if (status != kAclSuccess) fail_call(op, call, "", status, tell);
    if (key.empty() || !make_repeatable(executor)) return execute(op, call, workspace, executor, tell);
    execute_again(op, call, workspace, executor, tell);
    keep(std::move(key), executor, workspace, places);
  }

  template <class Handle>
  static void tell_one(std::ostream& text, std::size_t i, const Handle& handle) {
    std::ostringstream one;
    handle.tell(one);
    if (!one.str().empty()) text << (i ? ", " : "") << one.str();
  }
  template <class Handle>
  static void add_place(std::vector<Place>& places, Handle& handle) {
    if constexpr (Handle::kIsInput || Handle::kIsOutput) places.push_back({&handle, Handle::kIsInput});
  }

  using Tell = std::function<void(std::ostream&)>;
  void require_found(const char* op, const OperatorSymbols& call) const;
  [[noreturn]] void fail_call(const char* op, const OperatorSymbols& call, const char* phase,
                              AclStatus status, const Tell& tell) const;
  /// Takes a workspace and launches an executor, which is gone then whatever happens.
  void execute(const char* op, const OperatorSymbols& call, std::uint64_t workspace, aclOpExecutor* executor,
               const Tell& tell);
  /// The same for one that stays; when it throws, it is gone.
  void execute_again(const char* op, const OperatorSymbols& call, std::uint64_t workspace,
                     aclOpExecutor* executor, const Tell& tell);
  void run(const char* op, const OperatorSymbols& call, std::uint64_t bytes, void* memory,
           aclOpExecutor* executor, const Tell& tell);
  bool launch_planned(const char* op, const OperatorSymbols& call, const std::string& key,
                      const std::vector<Place>& places, const Tell& tell);
  bool make_repeatable(aclOpExecutor* executor) const;
  void discard(aclOpExecutor* executor) const noexcept;
  void keep(std::string key, aclOpExecutor* executor, std::uint64_t workspace,
            const std::vector<Place>& places);
  void forget(const std::string& key);
  void drop(std::unordered_map<std::string, Planned>::iterator planned);

  const std::shared_ptr<Npu> npu_;
  Pool& pool_;
  const bool blocking_;
  const std::size_t cache_limit_;
  const std::int64_t level_;
  AclStream stream_;
  std::vector<std::pair<void*, std::size_t>>* kept_ = nullptr;

  static constexpr std::size_t kRecent = 4;
  const char* recent_[kRecent] = {};
  std::size_t launched_ = 0;

  std::unordered_map<std::string, Planned> planned_;
  std::list<std::string> ages_;  // keys, the oldest first
  std::uint64_t reused_ = 0;
};

}  // namespace danceflux::ascend
