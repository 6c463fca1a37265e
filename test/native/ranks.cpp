#include "ranks.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <barrier>
#include <cstring>
#include <exception>
#include <thread>

#include "backend/registry.h"
#include "core/error.h"
#include "harness.h"

namespace danceflux::test {
namespace {

std::shared_ptr<Backend> device_of(int rank, const RanksOptions& options) {
  if (options.open_device) return options.open_device();
  return open_backend(options.device, options.device == "cpu" ? 0 : rank, options.device_options);
}

std::unique_ptr<CommunicatorSetup> setup_of(const std::shared_ptr<Backend>& device, int rank, int size,
                                            const RanksOptions& options) {
  const CommunicatorOptions of_rank{rank, size, options.timeout_seconds, options.engine_options};
  return options.make_setup ? options.make_setup(device, of_rank)
                            : make_communicator_setup(options.engine, device, of_rank);
}

void write_text(int to, const std::string& text) {
  const std::uint64_t size = text.size();
  std::string bytes(reinterpret_cast<const char*>(&size), sizeof size);
  bytes += text;
  for (std::size_t at = 0; at < bytes.size();) {
    const ssize_t done = ::write(to, bytes.data() + at, bytes.size() - at);
    if (done <= 0) return;
    at += static_cast<std::size_t>(done);
  }
}

/// False at the end of the pipe, or after a minute.
bool read_bytes(int from, void* to, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes;) {
    pollfd wanted{from, POLLIN, 0};
    if (poll(&wanted, 1, 60000) <= 0) return false;
    const ssize_t done = ::read(from, static_cast<char*>(to) + at, bytes - at);
    if (done <= 0) return false;
    at += static_cast<std::size_t>(done);
  }
  return true;
}

bool read_text(int from, std::string& text) {
  std::uint64_t size = 0;
  if (!read_bytes(from, &size, sizeof size) || size > (1 << 20)) return false;
  text.resize(size);
  return read_bytes(from, text.data(), size);
}

struct Child {
  pid_t process = -1;
  int to = -1, from = -1;
};

[[noreturn]] void run_child(int rank, int size, const RanksOptions& options, int from, int to,
                            const std::function<std::string(const Rank&)>& body) {
  std::string answer;
  try {
    const auto device = device_of(rank, options);
    const auto setup = setup_of(device, rank, size, options);
    write_text(to, setup->offer());
    std::vector<std::string> offers(static_cast<std::size_t>(size));
    for (std::string& offer : offers) CHECK(read_text(from, offer));
    const auto communicator = setup->connect(offers);
    write_text(to, "connected");
    answer = body({rank, size, *device, *communicator});
  } catch (const std::exception& error) {
    answer = std::string("threw ") + error.what();
  }
  write_text(to, answer);
  _exit(0);
}

Child start_child(int rank, int size, const RanksOptions& options, const std::vector<Child>& others,
                  const std::function<std::string(const Rank&)>& body) {
  int down[2], up[2];
  CHECK(pipe(down) == 0 && pipe(up) == 0);
  const pid_t process = fork();
  CHECK(process >= 0);
  if (process == 0) {
    for (const Child& other : others) close(other.to), close(other.from);
    close(down[1]), close(up[0]);
    run_child(rank, size, options, down[0], up[1], body);
  }
  close(down[0]), close(up[1]);
  return {process, down[1], up[0]};
}

void exchange_offers(const std::vector<Child>& children) {
  std::vector<std::string> offers(children.size());
  for (std::size_t rank = 0; rank < children.size(); ++rank)
    CHECK(read_text(children[rank].from, offers[rank]));
  for (const Child& child : children)
    for (const std::string& offer : offers) write_text(child.to, offer);
  std::string connected;
  for (const Child& child : children) {
    CHECK(read_text(child.from, connected));
    CHECK_EQ(connected, "connected");
  }
}

}  // namespace

void on_threads(int size, const RanksOptions& options, const std::function<void(const Rank&)>& body) {
  std::vector<std::string> offers(static_cast<std::size_t>(size));
  std::vector<std::exception_ptr> failures(static_cast<std::size_t>(size));
  std::barrier all(size);
  const auto run = [&](int rank) {
    const auto at = static_cast<std::size_t>(rank);
    try {
      const auto device = device_of(rank, options);
      std::unique_ptr<CommunicatorSetup> setup;
      try {
        setup = setup_of(device, rank, size, options);
        offers[at] = setup->offer();
      } catch (...) {
        all.arrive_and_drop();
        throw;
      }
      all.arrive_and_wait();
      const auto communicator = setup->connect(offers);
      body({rank, size, *device, *communicator});
    } catch (...) {
      failures[at] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) threads.emplace_back(run, rank);
  for (std::thread& thread : threads) thread.join();
  for (int rank = 0; rank < size; ++rank) {
    try {
      if (failures[static_cast<std::size_t>(rank)])
        std::rethrow_exception(failures[static_cast<std::size_t>(rank)]);
    } catch (const std::exception& error) {
      throw Failure("rank " + std::to_string(rank) + " of " + std::to_string(size) + ": " + error.what());
    }
  }
}

std::vector<std::string> in_processes(int size, const RanksOptions& options,
                                      const std::function<std::string(const Rank&)>& body,
                                      const Deaths& deaths) {
  std::fflush(stdout);
  signal(SIGPIPE, SIG_IGN);
  std::vector<Child> children;
  for (int rank = 0; rank < size; ++rank)
    children.push_back(start_child(rank, size, options, children, body));
  std::vector<std::string> answers(static_cast<std::size_t>(size));
  std::exception_ptr failure;
  try {
    exchange_offers(children);
    std::vector<int> processes;
    for (const Child& child : children) processes.push_back(child.process);
    if (deaths) deaths(processes);
    for (int rank = 0; rank < size; ++rank) {
      std::string& answer = answers[static_cast<std::size_t>(rank)];
      if (!read_text(children[static_cast<std::size_t>(rank)].from, answer)) answer.clear();
    }
  } catch (...) {
    failure = std::current_exception();
  }
  for (const Child& child : children) {
    kill(child.process, SIGKILL);  // those that ended are waited for below, so the number is still theirs
    waitpid(child.process, nullptr, 0);
    close(child.to), close(child.from);
  }
  if (failure) std::rethrow_exception(failure);
  return answers;
}

std::string message_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const Error& error) {
    return error.code == "ERR_COMMUNICATION" ? error.what() : error.code + " " + error.what();
  }
  return {};
}

std::vector<float> downloaded(Backend& device, const Tensor& x) {
  std::vector<std::byte> stored(x.bytes());
  device.download(stored.data(), x);
  std::vector<float> values(static_cast<std::size_t>(x.numel()));
  convert_elements(values.data(), DType::f32, stored.data(), x.dtype(), values.size());
  return values;
}

Guarded::Guarded(Backend& device, std::int64_t count, DType dtype) : device_(device) {
  constexpr std::int64_t kMargin = 37;
  whole_ = device.empty({count + 2 * kMargin}, dtype);
  device.upload(whole_, std::vector<unsigned char>(whole_.bytes(), 0x5a).data());
  view_ = whole_.narrow(0, kMargin, count);
}

void Guarded::set(const std::vector<float>& values) const {
  CHECK_EQ(static_cast<std::int64_t>(values.size()), view_.numel());
  std::vector<std::byte> stored(view_.bytes());
  convert_elements(stored.data(), view_.dtype(), values.data(), DType::f32, values.size());
  device_.upload(view_, stored.data());
}

std::vector<float> Guarded::values() const { return downloaded(device_, view_); }

void Guarded::check() const {
  std::vector<unsigned char> bytes(whole_.bytes());
  device_.download(bytes.data(), whole_);
  const std::size_t margin = (whole_.bytes() - view_.bytes()) / 2;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if ((i < margin || i >= bytes.size() - margin) && bytes[i] != 0x5a)
      fail_at(__FILE__, __LINE__, "a byte outside was written");
  }
}

}  // namespace danceflux::test
