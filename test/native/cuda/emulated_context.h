// Going from one stack to another on the host: what an emulated thread is made of. For one source only, as it
// defines a symbol.
#pragma once
#include <ucontext.h>

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulated {

constexpr std::size_t kStack = 256 * 1024;

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

struct Saved {
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
inline void jump(Saved& from, Saved& to) { danceflux_test_switch(&from.top, to.top); }
#else
struct Saved {
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
inline void jump(Saved& from, Saved& to) { swapcontext(&from.context, &to.context); }
#endif

/// A place to go to, and what AddressSanitizer wants to know of its stack.
struct Context {
  Saved saved;
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  std::size_t size = 0;
  /// Frames that were never left are forgotten.
  void prepare(unsigned char* stack, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
    unsigned char* const lowest = saved.lowest(stack);
    __asan_unpoison_memory_region(lowest, static_cast<std::size_t>(stack + kStack - lowest));
#endif
    saved.prepare(stack, entry);
    bottom = stack;
    size = kStack;
  }
};
inline void arrived([[maybe_unused]] Context* from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, from ? &from->bottom : nullptr, from ? &from->size : nullptr);
#endif
}
inline void go(Context& from, Context& to, [[maybe_unused]] bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
  jump(from.saved, to.saved);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

}  // namespace emulated
