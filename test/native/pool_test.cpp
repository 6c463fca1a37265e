// The caching pool against a counting system of limited size, and the same through a device.
#include "backend/pool.h"

#include <cstdlib>
#include <thread>

#include "cpu_device.h"

using namespace danceflux;
using namespace danceflux::test;

namespace {

/// Takes at most `limit` bytes at a time and knows what is out.
struct System {
  std::size_t limit = ~std::size_t{0}, out = 0;
  int taken = 0, given = 0;
  Pool pool() {
    return Pool(
        [this](std::size_t bytes) -> void* {
          if (out + bytes > limit) return nullptr;
          out += bytes;
          ++taken;
          return std::malloc(bytes);
        },
        [this](void* address, std::size_t bytes) {
          out -= bytes;
          ++given;
          std::free(address);
        });
  }
};

}  // namespace

TEST("pool: freed memory of a size class is handed out again") {
  System system;
  Pool pool = system.pool();
  void* first = pool.allocate(1000);
  pool.release(first, 1000);
  CHECK(pool.allocate(1000) == first);
  pool.release(first, 1000);
  CHECK(pool.allocate(900) == first);  // 769..1024 bytes are one class
  void* other = pool.allocate(1000);
  CHECK(other != first);
  CHECK_EQ(system.taken, 2);
  pool.release(first, 900);
  pool.release(other, 1000);
  CHECK_EQ(system.given, 0);
}

TEST("pool: counts what is used, held, asked and fetched") {
  System system;
  Pool pool = system.pool();
  void* a = pool.allocate(5000);
  void* b = pool.allocate(300);
  MemoryStats stats = pool.stats();
  CHECK(stats.used >= 5300 && stats.used <= 5300 * 9 / 8 + 512);
  CHECK_EQ(stats.used, stats.held);
  CHECK_EQ(stats.held, system.out);
  CHECK_EQ(stats.peak, stats.used);
  const std::size_t both = stats.used;
  pool.release(a, 5000);
  stats = pool.stats();
  CHECK(stats.used < both);
  CHECK_EQ(stats.held, both);
  CHECK_EQ(stats.peak, both);
  pool.reset_peak();
  CHECK_EQ(pool.stats().peak, pool.stats().used);
  a = pool.allocate(5000);
  stats = pool.stats();
  CHECK_EQ(stats.allocations, 3u);
  CHECK_EQ(stats.system_allocations, 2u);
  pool.release(a, 5000);
  pool.release(b, 300);
  CHECK_EQ(pool.stats().used, 0u);
}

TEST("pool: wastes at most an eighth, or the smallest class") {
  for (std::size_t bytes = 1; bytes < 5000000; bytes = bytes * 9 / 8 + 1) {
    System system;
    Pool pool = system.pool();
    void* address = pool.allocate(bytes);
    CHECK(system.out >= bytes);
    CHECK(system.out <= std::max<std::size_t>(bytes + bytes / 8 + 256, 256));
    pool.release(address, bytes);
  }
}

TEST("pool: trim gives back what nobody uses") {
  System system;
  Pool pool = system.pool();
  void* used = pool.allocate(2000);
  pool.release(pool.allocate(100000), 100000);
  pool.trim();
  CHECK_EQ(pool.stats().held, pool.stats().used);
  CHECK_EQ(system.out, pool.stats().used);
  CHECK_EQ(system.given, 1);
  pool.release(used, 2000);
}

TEST("pool: its end gives everything back") {
  System system;
  {
    Pool pool = system.pool();
    pool.release(pool.allocate(100), 100);
    pool.release(pool.allocate(70000), 70000);
  }
  CHECK_EQ(system.out, 0u);
  CHECK_EQ(system.given, 2);
}

TEST("pool: exhaustion empties the cache first, then tells the numbers") {
  System system;
  system.limit = 1 << 20;  // pieces of 600 and 900 KiB are rounded up to 640 and 960
  Pool pool = system.pool();
  pool.release(pool.allocate(600 << 10), 600 << 10);
  void* big = pool.allocate(900 << 10);  // fits only once the cached piece is gone
  CHECK_EQ(system.given, 1);
  try {
    pool.allocate(900 << 10);
    CHECK(!"allocate returned");
  } catch (const Error& error) {
    CHECK_EQ(error.code, std::string("ERR_MEMORY"));
    CHECK_EQ(std::string(error.what()),
             "allocate: expected 983040 bytes, got none; 983040 bytes in use, 983040 held");
    CHECK(!error.hint.empty());
  }
  CHECK_EQ(pool.stats().used, pool.stats().held);  // the failure left nothing behind
  pool.release(big, 900 << 10);
}

TEST("pool: many threads at once") {
  System system;
  Pool pool = system.pool();
  const auto work = [&](std::uint64_t seed) {
    Numbers numbers(seed);
    for (int i = 0; i < 3000; ++i) {
      const std::size_t bytes = 1 + numbers.bits() % 4000;
      auto* address = static_cast<unsigned char*>(pool.allocate(bytes));
      std::memset(address, static_cast<int>(seed), bytes);
      if (address[bytes - 1] != seed) std::abort();
      pool.release(address, bytes);
    }
  };
  std::thread a(work, 1), b(work, 2), c(work, 3);
  a.join(), b.join(), c.join();
  CHECK_EQ(pool.stats().used, 0u);
  CHECK_EQ(pool.stats().allocations, 9000u);
}

TEST("cpu device: tensors go back to the pool and come out aligned") {
  const auto device = open_device("", 1);
  const MemoryStats before = device->memory();
  for (std::int64_t n : {0, 1, 3, 1000, 100000, 3000000}) {
    const Tensor x = device->empty({n});
    CHECK(reinterpret_cast<std::uintptr_t>(x.address()) % 64 == 0);
    CHECK(device->memory().used > before.used);
    device->fill(x, 1);
  }
  CHECK_EQ(device->memory().used, before.used);
  const std::uint64_t fetched = device->memory().system_allocations;
  for (int turn = 0; turn < 10; ++turn) {
    const Tensor a = device->empty({3000000}), b = device->empty({1000});
  }
  CHECK_EQ(device->memory().system_allocations, fetched);
  device->trim();
  CHECK_EQ(device->memory().held, device->memory().used);
}

TEST("cpu device: a request beyond all memory is refused, not fatal") {
  const auto device = open_device("", 1);
  CHECK_THROWS("ERR_MEMORY", device->empty({std::int64_t{1} << 50}));
  CHECK_EQ(device->memory().used, 0u);
}

TEST("cpu device: says what it is") {
  const auto one = open_device(isa_names().back(), 1), two = open_device("", 2);
  CHECK_EQ(one->name(), std::string("cpu"));
  CHECK(one->description().ends_with(", " + isa_names().back() + ", 1 thread"));
  CHECK(two->description().ends_with(", " + isa_names().front() + ", 2 threads"));
  CHECK(one->activation_dtype(DType::bf16) == DType::f32);
  CHECK_THROWS("ERR_DEVICE", cpu::open_cpu({1, "mmx"}));
}
