#include "emulated_device.h"

#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulated {

thread_local Place place;

namespace {

constexpr std::size_t kStack = 256 * 1024;
constexpr unsigned kLanes = 32;
std::atomic<std::uint64_t> launch_count{0};

// ---- going from one stack to another
// -----------------------------------------------------------------------------
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
// What the calling convention wants kept; swapcontext would ask the kernel for the signal mask twice, and
// under a sanitizer clear what that knows of the whole stack.
extern "C" void danceflux_test_switch(void** save, void* load);
asm(R"(
.text
.globl danceflux_test_switch
.hidden danceflux_test_switch
danceflux_test_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

struct Machine {
  void* top = nullptr;
  void prepare(unsigned char* stack, void (*entry)()) {
    auto** slot =
        reinterpret_cast<void**>(reinterpret_cast<std::uintptr_t>(stack + kStack) & ~std::uintptr_t{15});
    *--slot = nullptr;  // what a call would have left: aligns the entry's frame
    *--slot = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--slot = nullptr;
    top = slot;
  }
  /// Below it no frame was alive when this was last left.
  unsigned char* lowest(unsigned char* stack) const {
    return top ? static_cast<unsigned char*>(top) : stack + kStack;
  }
};
void jump(Machine& from, Machine& to) { danceflux_test_switch(&from.top, to.top); }
#else
struct Machine {
  ucontext_t context{};
  void prepare(unsigned char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  unsigned char* lowest(unsigned char* stack) const { return stack; }
};
void jump(Machine& from, Machine& to) { swapcontext(&from.context, &to.context); }
#endif

/// A place to go to, and what AddressSanitizer wants to know of its stack.
struct Context {
  Machine machine;
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  std::size_t size = 0;
  /// Frames that were never left are forgotten.
  void prepare(unsigned char* stack, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
    unsigned char* const lowest = machine.lowest(stack);
    __asan_unpoison_memory_region(lowest, static_cast<std::size_t>(stack + kStack - lowest));
#endif
    machine.prepare(stack, entry);
    bottom = stack;
    size = kStack;
  }
};
void arrived([[maybe_unused]] Context* from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, from ? &from->bottom : nullptr, from ? &from->size : nullptr);
#endif
}
void go(Context& from, Context& to, [[maybe_unused]] bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
  jump(from.machine, to.machine);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// ---- a block
// -----------------------------------------------------------------------------------------------------
enum class State : std::uint8_t { ready, at_warp, at_block, done };

struct Fiber {
  Context context;
  State state = State::ready;
  unsigned turns = 0;  // exchanges so far: two sets of slots alternate
};

struct Slots {
  std::uint64_t value[2][kLanes];
  struct Operands {
    std::uint32_t a[4], b[2];
  } operands[2][kLanes];
};

class Block {
 public:
  void run(unsigned threads, const Index& block, const std::function<void()>& body, std::uint64_t order) {
    body_ = &body;
    failure_ = nullptr;
    place.block = block;
    fibers_.resize(std::max<std::size_t>(fibers_.size(), threads));
    while (stacks_.size() < threads) stacks_.emplace_back(new unsigned char[kStack]);
    slots_.resize((threads + kLanes - 1) / kLanes);
    threads_ = threads;
    for (unsigned i = 0; i < threads; ++i) {
      fibers_[i].state = State::ready;
      fibers_[i].turns = 0;
      fibers_[i].context.prepare(stacks_[i].get(), &Block::enter);
    }
    for (;;) {
      // an odd step and a start that move with the launch: every order of two threads occurs
      const unsigned step = static_cast<unsigned>(order * 2 + 1) | 1u;
      unsigned at = static_cast<unsigned>(order * 7919) % threads;
      const bool permutes = (threads & (threads - 1)) == 0;
      for (unsigned i = 0; i < threads; ++i) {
        if (fibers_[at].state == State::ready) resume(at);
        if (failure_) std::rethrow_exception(failure_);
        at = permutes ? (at + step) % threads : (at + threads - 1) % threads;
      }
      if (!release()) return;
    }
  }

  void wait(State state) {
    Fiber& fiber = fibers_[current_];
    fiber.state = state;
    leave(false);
  }

  std::uint64_t exchange(std::uint64_t value, unsigned from) {
    const unsigned set = fibers_[current_].turns++ % 2;
    Slots& slots = slots_[current_ / kLanes];
    slots.value[set][current_ % kLanes] = value;
    wait(State::at_warp);
    return slots.value[set][from % kLanes];
  }

  void mma(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    const unsigned set = fibers_[current_].turns++ % 2, lane = current_ % kLanes;
    Slots& slots = slots_[current_ / kLanes];
    Slots::Operands& mine = slots.operands[set][lane];
    std::copy_n(a, 4, mine.a);
    mine.b[0] = b0;
    mine.b[1] = b1;
    wait(State::at_warp);
    const auto half = [](std::uint32_t word, unsigned high) {
      const std::uint32_t bits = (high ? word >> 16 : word & 0xffffu) << 16;
      float value;
      std::memcpy(&value, &bits, sizeof value);
      return value;
    };
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4 + (i / 2) * 8, column = lane % 4 * 2 + i % 2;
      float sum = d[i];
      for (unsigned k = 0; k < 16; ++k) {
        const Slots::Operands& left = slots.operands[set][row % 8 * 4 + k % 8 / 2];
        const Slots::Operands& right = slots.operands[set][column * 4 + k % 8 / 2];
        sum += half(left.a[row / 8 + k / 8 * 2], k % 2) * half(right.b[k / 8], k % 2);
      }
      d[i] = sum;
    }
  }

  std::vector<unsigned char> dynamic;

 private:
  static void enter();

  void resume(unsigned i) {
    current_ = i;
    place.thread = {i, 0, 0};
    go(scheduler_, fibers_[i].context, false);
  }

  void leave(bool last) {
    const Place here = place;
    go(fibers_[current_].context, scheduler_, last);
    place = here;
  }

  /// Lets those go on whose barrier is complete. False: all are done.
  bool release() {
    unsigned at_block = 0, done = 0;
    for (unsigned i = 0; i < threads_; ++i) {
      at_block += fibers_[i].state == State::at_block;
      done += fibers_[i].state == State::done;
    }
    if (done == threads_) return false;
    if (at_block == threads_) {
      for (unsigned i = 0; i < threads_; ++i) fibers_[i].state = State::ready;
      return true;
    }
    bool progress = false;
    for (unsigned first = 0; first < threads_; first += kLanes) {
      const unsigned last = std::min(threads_, first + kLanes);
      bool all = true;
      for (unsigned i = first; i < last; ++i) all = all && fibers_[i].state == State::at_warp;
      if (!all) continue;
      for (unsigned i = first; i < last; ++i) fibers_[i].state = State::ready;
      progress = true;
    }
    if (!progress)
      throw std::logic_error("a barrier that only some threads reach: " + std::to_string(at_block) + " of " +
                             std::to_string(threads_) + " wait for the block, " + std::to_string(done) +
                             " have ended");
    return true;
  }

  std::vector<Fiber> fibers_;
  std::vector<std::unique_ptr<unsigned char[]>> stacks_;
  std::vector<Slots> slots_;
  Context scheduler_;
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr failure_;
  unsigned threads_ = 0, current_ = 0;
};

thread_local Block block;

void Block::enter() {
  Block& self = block;
  arrived(&self.scheduler_);
  try {
    (*self.body_)();
  } catch (...) {
    self.failure_ = std::current_exception();
  }
  self.fibers_[self.current_].state = State::done;
  self.leave(true);
}

}  // namespace

void run(unsigned x, unsigned y, unsigned z, unsigned threads, std::size_t shared_bytes,
         const std::function<void()>& body) {
  const std::uint64_t order = launch_count++;
  if (threads == 0 || threads > 1024 || y > 65535 || z > 65535)
    throw std::logic_error("a launch that no device takes: " + std::to_string(threads) + " threads, grid " +
                           std::to_string(x) + " x " + std::to_string(y) + " x " + std::to_string(z));
  place.block_size = {threads, 1, 1};
  place.grid_size = {x, y, z};
  for (unsigned k = 0; k < z; ++k)
    for (unsigned j = 0; j < y; ++j)
      for (unsigned i = 0; i < x; ++i) {
        block.dynamic.assign(shared_bytes, 0xff);
        block.run(threads, {i, j, k}, body, order + i);
      }
}

unsigned char* dynamic_shared() { return block.dynamic.data(); }
void block_barrier() { block.wait(State::at_block); }
void warp_barrier() { block.wait(State::at_warp); }
std::uint64_t exchange(std::uint64_t value, unsigned from) { return block.exchange(value, from); }
void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  block.mma(d, a, b0, b1);
}
std::uint64_t launches() { return launch_count; }

}  // namespace emulated
