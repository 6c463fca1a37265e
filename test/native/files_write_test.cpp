// Writing safetensors: what is read again, and what is left when the writing fails.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <numeric>

#include "harness.h"
#include "io/safetensors.h"
#include "temporary.h"

namespace danceflux::test {
namespace {

// Bytes that count up, which are finite or not as they please: files keep bits.
io::TensorToWrite counting(const std::string& name, DType dtype, const Shape& shape) {
  const auto bytes = static_cast<std::size_t>(shape.numel()) * size_of(dtype);
  return {name, dtype, shape, [bytes](std::byte* to) {
            for (std::size_t i = 0; i < bytes; ++i) to[i] = static_cast<std::byte>(i * 7 + bytes);
          }};
}

std::vector<io::TensorToWrite> all_dtypes() {
  std::vector<io::TensorToWrite> tensors;
  for (const DType dtype :
       {DType::u8, DType::f32, DType::bf16, DType::f16, DType::f64, DType::i32, DType::i64}) {
    const std::string name(name_of(dtype));
    tensors.push_back(counting(name + ".matrix", dtype, {3, 5}));
    tensors.push_back(counting(name + ".scalar", dtype, {}));
    tensors.push_back(counting(name + ".empty", dtype, {2, 0}));
  }
  tensors.push_back(
      counting("\"odd\"\n\x01 \xc3\xa9 \xf0\x9f\x98\x80", DType::f32, {1, 1, 1, 1, 1, 1, 1, 1}));
  return tensors;
}

// Runs `body` in a child, so that its limits and its death stay there; answers waitpid's status. The body
// returns an exit status.
template <class Body>
int in_child(Body body) {
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    int status = 99;
    try {
      status = body();
    } catch (...) {
    }
    ::_exit(status);
  }
  int status = 0;
  CHECK(child > 0 && ::waitpid(child, &status, 0) == child);
  return status;
}

// 0 when writing to `path` is refused by ERR_FILE whose message contains `told`.
int refused(const std::string& path, const char* told) {
  try {
    io::write_safetensors(path, {counting("w", DType::f32, {4096})}, {});
  } catch (const Error& error) {
    return error.code == "ERR_FILE" && std::strstr(error.what(), told) ? 0 : 2;
  }
  return 1;
}

TEST("safetensors: what is written is read again, in every type") {
  const TemporaryFolder folder;
  const std::string path = folder.path("all.safetensors");
  const std::map<std::string, std::string> metadata{
      {"format", "pt"}, {"quote\"", "tab\t \xe4\xb8\xad"}, {"", ""}};
  io::write_safetensors(path, all_dtypes(), metadata);
  const auto file = io::open_tensor_file(path);
  CHECK(file->metadata() == metadata);
  CHECK_EQ(file->tensors().size(), all_dtypes().size());
  for (const io::TensorToWrite& tensor : all_dtypes()) {
    const io::FileTensor& found = file->find(tensor.name);
    CHECK_EQ(found.shape, tensor.shape);
    CHECK(found.dtype == tensor.dtype && found.readable);
    CHECK_EQ(reinterpret_cast<std::uintptr_t>(found.data) % size_of(tensor.dtype), std::uintptr_t{0});
    std::vector<std::byte> wanted(static_cast<std::size_t>(tensor.shape.numel()) * size_of(tensor.dtype)),
        got = wanted;
    tensor.fill(wanted.data());
    io::read_rows(found, 0, -1, false, tensor.dtype, got.data());
    CHECK(got == wanted);
  }
  CHECK_EQ(folder.names().size(), std::size_t{1});
}

TEST("safetensors: the same tensors in any order are the same file") {
  const TemporaryFolder folder;
  auto tensors = all_dtypes();
  io::write_safetensors(folder.path("a"), tensors, {{"b", "2"}, {"a", "1"}});
  std::reverse(tensors.begin(), tensors.end());
  io::write_safetensors(folder.path("b"), tensors, {{"a", "1"}, {"b", "2"}});
  CHECK(read_bytes(folder.path("a")) == read_bytes(folder.path("b")));
}

TEST("safetensors: names and metadata that nobody could read are not written") {
  const TemporaryFolder folder;
  const auto write = [&](std::vector<io::TensorToWrite> tensors,
                         std::map<std::string, std::string> metadata) {
    io::write_safetensors(folder.path("w"), std::move(tensors), metadata);
  };
  // Of different widths: the two do not stand side by side in the file.
  check_told(
      error_of([&] {
        write({counting("w", DType::f32, {1}), counting("v", DType::f32, {1}), counting("w", DType::u8, {1})},
              {});
      }),
      "expected each name once, got w again");
  CHECK_THROWS("ERR_FILE", write({counting("__metadata__", DType::f32, {1})}, {}));
  CHECK_THROWS("ERR_FILE", write({counting("\xff", DType::f32, {1})}, {}));
  CHECK_THROWS("ERR_FILE", write({}, {{"key", "\xc3("}}));
  CHECK_EQ(folder.names().size(), std::size_t{0});
}

TEST("safetensors: a full disk leaves the old file and no other") {
  const TemporaryFolder folder;
  const std::string path = folder.write("w.safetensors", "the last good one");
  const int status = in_child([&] {
    std::signal(SIGXFSZ, SIG_IGN);  // the write then fails as it does on a full disk, with EFBIG
    const rlimit limit{8192, 8192};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 3;
    return refused(path, "cannot be written");
  });
  CHECK_EQ(status, 0);
  CHECK_EQ(read_bytes(path), std::string("the last good one"));
  CHECK_EQ(folder.names().size(), std::size_t{1});
}

TEST("safetensors: a folder that cannot be written is told") {
  const TemporaryFolder folder;
  folder.write("file", "x");
  CHECK_EQ(refused(folder.path("none/w"), "cannot be made: No such file"), 0);
  CHECK_EQ(refused(folder.path("file/w"), "cannot be made: Not a directory"), 0);
  std::filesystem::create_directory(folder.path("taken"));
  CHECK_EQ(refused(folder.path("taken"), "cannot be put in place"), 0);
  CHECK_EQ(::chmod(folder.path().c_str(), 0555), 0);
  const int status = in_child([&] {
    if (::geteuid() == 0 && ::setuid(65534) != 0) return 3;  // root may write anywhere
    return refused(folder.path("w"), "cannot be made: Permission denied");
  });
  CHECK_EQ(::chmod(folder.path().c_str(), 0755), 0);
  CHECK_EQ(status, 0);
  CHECK_EQ(folder.names().size(), std::size_t{2});
}

TEST("safetensors: a tensor that fails to come leaves the old file and no other") {
  const TemporaryFolder folder;
  const std::string path = folder.write("w.safetensors", "old");
  const io::TensorToWrite failing{"v", DType::f32, {4}, [](std::byte*) { fail("ERR_DEVICE", "lost"); }};
  CHECK_THROWS("ERR_DEVICE", io::write_safetensors(path, {counting("w", DType::f32, {4}), failing}, {}));
  CHECK_EQ(read_bytes(path), std::string("old"));
  CHECK_EQ(folder.names().size(), std::size_t{1});
}

TEST("safetensors: a kill in the middle leaves the old file") {
  const TemporaryFolder folder;
  const std::string path = folder.write("w.safetensors", "old");
  const int status = in_child([&] {
    const io::TensorToWrite deadly{"v", DType::f32, {4}, [](std::byte*) { ::raise(SIGKILL); }};
    io::write_safetensors(path, {counting("w", DType::f64, {1 << 16}), deadly}, {});
    return 0;
  });
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  CHECK_EQ(read_bytes(path), std::string("old"));
}

TEST("safetensors: a link under the temporary name is not followed") {
  const TemporaryFolder folder;
  const std::string victim = folder.write("victim", "precious"), path = folder.path("w");
  const int status = in_child([&] {
    const std::string temporary = path + ".tmp-" + std::to_string(::getpid());
    if (::symlink(victim.c_str(), temporary.c_str()) != 0) return 3;
    return refused(path, "cannot be made");
  });
  CHECK_EQ(status, 0);
  CHECK_EQ(read_bytes(victim), std::string("precious"));
}

}  // namespace
}  // namespace danceflux::test
