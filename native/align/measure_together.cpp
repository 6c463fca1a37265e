#include "align/measure_together.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "core/error.h"

namespace danceflux::align {
namespace {

constexpr std::size_t kMostThreads = 8;  // beyond them memory is what takes the time
constexpr std::size_t kPiece = 1 << 15;  // elements that are read at once: both sides stay in a second cache

std::size_t threads_for(std::uint64_t parts) {
  const std::uint64_t here = std::max(1u, std::thread::hardware_concurrency());
  return static_cast<std::size_t>(std::min<std::uint64_t>({parts, kMostThreads, here}));
}

/// Joins parts that are ready in any order, in their own order.
class InOrder {
 public:
  explicit InOrder(PairMeasure& whole) : whole_(whole) {}
  void add(std::uint64_t part, const PairMeasure& measure) {
    const std::lock_guard lock(mutex_);
    waiting_.emplace(part, measure);
    for (auto next = waiting_.begin(); next != waiting_.end() && next->first == joined_;
         next = waiting_.erase(next), ++joined_)
      whole_.add(next->second);
  }

 private:
  PairMeasure& whole_;
  std::mutex mutex_;
  std::map<std::uint64_t, PairMeasure> waiting_;
  std::uint64_t joined_ = 0;
};

/// Calls `worker` on as many threads as are worth it; it takes the numbers of parts from the counter that it
/// is given. The first exception of any ends all and comes out.
void on_threads(std::uint64_t parts, const std::function<void(std::atomic<std::uint64_t>& next)>& worker) {
  std::atomic<std::uint64_t> next{0};
  std::mutex mutex;
  std::exception_ptr failed;
  const auto guarded = [&] {
    try {
      worker(next);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failed) failed = std::current_exception();
      next = parts;
    }
  };
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < threads_for(parts); ++i) threads.emplace_back(guarded);
  guarded();
  for (std::thread& thread : threads) thread.join();
  if (failed) std::rethrow_exception(failed);
}

// ---- files ----------------------------------------------------------------------------------------------

class Reader {
 public:
  explicit Reader(const StoredElements& where) : where_(where) {
    file_ = ::open(where.path.c_str(), O_RDONLY | O_CLOEXEC);
    require(file_ >= 0, "ERR_FILE", where.path, ": cannot be opened: ", std::strerror(errno));
  }
  ~Reader() { ::close(file_); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  std::size_t size() const { return size_of(where_.dtype); }
  DType dtype() const { return where_.dtype; }

  /// These elements are wanted soon.
  void announce(std::uint64_t first, std::size_t count) const {
    ::posix_fadvise(file_, position(first), static_cast<off_t>(count * size()), POSIX_FADV_WILLNEED);
  }
  void read(void* to, std::uint64_t first, std::size_t count) const {
    std::size_t done = 0;
    while (done < count * size()) {
      const ssize_t got = ::pread(file_, static_cast<char*>(to) + done, count * size() - done,
                                  position(first) + static_cast<off_t>(done));
      if (got < 0 && errno == EINTR) continue;
      require(got >= 0, "ERR_FILE", where_.path, ": cannot be read: ", std::strerror(errno));
      require(got > 0, "ERR_FILE", where_.path, ": it is cut off");
      done += static_cast<std::size_t>(got);
    }
  }

 private:
  off_t position(std::uint64_t element) const { return static_cast<off_t>(where_.offset + element * size()); }

  StoredElements where_;
  int file_ = -1;
};

/// Memory for a piece of one side.
std::vector<double> room_for(const Reader& reader) {  // doubles: aligned for any element
  return std::vector<double>(kPiece * reader.size() / sizeof(double));
}

}  // namespace

void add_together(PairMeasure& pair, const void* a, DType a_dtype, const void* b, DType b_dtype,
                  std::size_t elements) {
  const std::uint64_t parts = (elements + kPart - 1) / kPart;
  InOrder joined(pair);
  on_threads(parts, [&](std::atomic<std::uint64_t>& next) {
    for (std::uint64_t part = next++; part < parts; part = next++) {
      const std::size_t start = static_cast<std::size_t>(part) * kPart;
      PairMeasure measure;
      measure.add(static_cast<const std::byte*>(a) + start * size_of(a_dtype), a_dtype,
                  static_cast<const std::byte*>(b) + start * size_of(b_dtype), b_dtype,
                  std::min(kPart, elements - start));
      joined.add(part, measure);
    }
  });
}

PairMeasure measure_stored(const StoredElements& a, const StoredElements& b, std::uint64_t elements) {
  const Reader left(a), right(b);
  const std::uint64_t parts = (elements + kPart - 1) / kPart, ahead = threads_for(parts);
  PairMeasure pair;
  InOrder joined(pair);
  on_threads(parts, [&](std::atomic<std::uint64_t>& next) {
    std::vector<double> x = room_for(left), y = room_for(right);
    for (std::uint64_t part = next++; part < parts; part = next++) {
      const std::uint64_t start = part * kPart, end = std::min<std::uint64_t>(elements, start + kPart);
      if (part + ahead < parts) {  // the system reads those while these are measured
        left.announce((part + ahead) * kPart, kPart);
        right.announce((part + ahead) * kPart, kPart);
      }
      PairMeasure measure;
      for (std::uint64_t at = start; at < end; at += kPiece) {
        const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(kPiece, end - at));
        left.read(x.data(), at, count);
        right.read(y.data(), at, count);
        measure.add(x.data(), left.dtype(), y.data(), right.dtype(), count);
      }
      joined.add(part, measure);
    }
  });
  return pair;
}

}  // namespace danceflux::align
