#include "backend/waiting.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace danceflux {

static_assert(std::atomic<std::uint32_t>::is_always_lock_free && sizeof(std::atomic<std::uint32_t>) == 4);

void sleep_while(const std::atomic<std::uint32_t>& word, std::uint32_t seen,
                 std::chrono::microseconds longest) {
  const auto micros = longest.count();
  const timespec limit{static_cast<time_t>(micros / 1000000), static_cast<long>(micros % 1000000 * 1000)};
  syscall(SYS_futex, &word, FUTEX_WAIT, seen, &limit, nullptr, 0);
}

void wake_all(const std::atomic<std::uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace danceflux
