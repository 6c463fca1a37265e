// Waiting for another thread or process: a short spin, then sleep on a word of memory.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>

namespace danceflux {

inline void pause_core() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Spins until `ready()` or until `limit` has passed; says which.
template <class Ready>
bool spin_until(std::chrono::microseconds limit, Ready ready) {
  const auto end = std::chrono::steady_clock::now() + limit;
  do {
    for (int turn = 0; turn < 32; ++turn) {
      if (ready()) return true;
      pause_core();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

/// Sleeps while `word` holds `seen`, for `longest` at most; may wake for no reason. The word may lie in
/// memory that several processes share.
void sleep_while(const std::atomic<std::uint32_t>& word, std::uint32_t seen,
                 std::chrono::microseconds longest);
/// Wakes all who sleep on `word`.
void wake_all(const std::atomic<std::uint32_t>& word);

}  // namespace danceflux
