#include "emulated_device.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulated_context.h"

namespace emulated {

thread_local Place place;

namespace {

constexpr unsigned kLanes = 32;
/// What every card from sm_80 on gives a block (sm_86 and sm_89 give no more).
constexpr std::size_t kSharedBytes = 99 * 1024;
std::atomic<std::uint64_t> launch_count{0}, product_count{0};

// ---- a block
// -----------------------------------------------------------------------------------------------------
enum class State : std::uint8_t { ready, at_warp, at_block, done };

struct Fiber {
  Context context;
  State state = State::ready;
  unsigned turns = 0;  // exchanges so far: two sets of slots alternate
  struct Copy {
    void* to;
    const void* from;
    unsigned bytes;
    bool inside;
  };
  std::vector<Copy> copies;  // begun and not waited for
};

[[noreturn]] void misaligned(const char* what, unsigned bytes) {
  throw std::logic_error(std::string(what) + ": expected addresses at multiples of " + std::to_string(bytes) +
                         " bytes");
}
bool at_multiple(const void* address, unsigned bytes) {
  return reinterpret_cast<std::uintptr_t>(address) % bytes == 0;
}

struct Slots {
  std::uint64_t value[2][kLanes];
  struct Operands {
    std::uint32_t a[4], b[2];
  } operands[2][kLanes];
  const unsigned char* row[2][kLanes];
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
      fibers_[i].copies.clear();
      fibers_[i].context.prepare(stacks_[i].get(), &Block::enter);
    }
    const unsigned warps = static_cast<unsigned>(slots_.size()), from = static_cast<unsigned>(order % warps);
    do {
      for (unsigned n = 0; n < warps; ++n) run_warp((from + (order % 2 ? warps - n : n)) % warps, order);
    } while (release());
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
    if (lane == 0) ++product_count;
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

  void load_matrices(std::uint32_t (&out)[4], const void* row, bool turned) {
    if (!at_multiple(row, 16)) misaligned("load_matrices", 16);
    const unsigned set = fibers_[current_].turns++ % 2, lane = current_ % kLanes;
    Slots& slots = slots_[current_ / kLanes];
    slots.row[set][lane] = static_cast<const unsigned char*>(row);
    wait(State::at_warp);
    for (unsigned m = 0; m < 4; ++m)
      for (unsigned i = 0; i < 2; ++i) {
        const unsigned along = lane % 4 * 2 + i, across = lane / 4, from = turned ? along : across;
        std::uint16_t bits;
        std::memcpy(&bits, slots.row[set][m * 8 + from] + 2 * (turned ? across : along), sizeof bits);
        out[m] = i == 0 ? bits : out[m] | std::uint32_t{bits} << 16;
      }
  }

  void copy_async(void* to, const void* from, unsigned bytes, bool inside) {
    if (!at_multiple(to, bytes) || !at_multiple(from, bytes)) misaligned("copy_async", bytes);
    fibers_[current_].copies.push_back({to, from, bytes, inside});
  }
  void wait_for_copies() {
    for (const auto& [to, from, bytes, inside] : fibers_[current_].copies) {
      if (inside)
        std::memcpy(to, from, bytes);
      else
        std::memset(to, 0, bytes);
    }
    fibers_[current_].copies.clear();
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

  /// As far as the next barrier of the block.
  void run_warp(unsigned warp, std::uint64_t order) {
    const unsigned first = warp * kLanes, lanes = std::min(threads_ - first, kLanes);
    // an odd step and a start that move with the launch: every order of two lanes occurs
    const unsigned step = lanes == kLanes ? static_cast<unsigned>(order * 2 + 1) % kLanes : lanes - 1;
    bool together = true;
    while (together) {
      unsigned at = static_cast<unsigned>(order * 7919) % lanes;
      for (unsigned i = 0; i < lanes; ++i) {
        if (fibers_[first + at].state == State::ready) resume(first + at);
        if (failure_) std::rethrow_exception(failure_);
        at = (at + step) % lanes;
      }
      for (unsigned i = 0; i < lanes; ++i) together = together && fibers_[first + i].state == State::at_warp;
      for (unsigned i = 0; together && i < lanes; ++i) fibers_[first + i].state = State::ready;
    }
  }

  /// Lets all go on when their barrier is complete. False: all are done.
  bool release() {
    unsigned at_block = 0, done = 0;
    for (unsigned i = 0; i < threads_; ++i) {
      at_block += fibers_[i].state == State::at_block;
      done += fibers_[i].state == State::done;
    }
    if (done == threads_) return false;
    if (at_block != threads_)
      throw std::logic_error("a barrier that only some threads reach: " + std::to_string(at_block) + " of " +
                             std::to_string(threads_) + " wait for the block, " + std::to_string(done) +
                             " have ended");
    for (unsigned i = 0; i < threads_; ++i) fibers_[i].state = State::ready;
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
  if (shared_bytes > kSharedBytes)
    throw std::logic_error("a launch that not every device takes: " + std::to_string(shared_bytes) +
                           " bytes of shared memory");
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
void load_matrices(std::uint32_t (&out)[4], const void* row, bool turned) {
  block.load_matrices(out, row, turned);
}
void copy_async(void* to, const void* from, unsigned bytes, bool inside) {
  block.copy_async(to, from, bytes, inside);
}
void wait_for_copies() { block.wait_for_copies(); }
std::uint64_t launches() { return launch_count; }
std::uint64_t products() { return product_count; }

}  // namespace emulated
