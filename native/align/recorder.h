// An observer that writes down what it sees: one line of JSON per tensor, and, when asked, the tensors
// themselves in safetensors files. Never more than one shard and one piece of a tensor are in host memory.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "align/measure.h"
#include "autograd/observer.h"

namespace danceflux::align {

enum class Summary : std::uint8_t { checksum, statistics, full };

struct RecorderOptions {
  Observer::Level level = Observer::Level::block;
  Summary summary = Summary::statistics;
  std::string folder;                  // of the tensors' files; not needed unless `full`
  std::size_t shard_bytes = 64 << 20;  // a file is written when it has so many
};

class Recorder final : public Observer {
 public:
  explicit Recorder(RecorderOptions options);

  /// What comes next belongs to this stage; what is seen inside of models to `inside`.
  void stage(std::string name, std::string inside);
  /// One tensor that somebody names himself. `role` is "input", "output", "gradient" or "value".
  void record(const std::string& name, const std::string& op, const char* role, const Tensor& tensor);
  /// How many lines there were so far.
  std::uint64_t count() const { return count_; }
  /// What it took so far.
  double seconds() const { return seconds_; }
  /// Writes what waits to be written.
  void flush();
  /// The lines since the last call. Throws what stopped the recording (ERR_FILE: the disk is full), once.
  std::vector<std::string> take();

 private:
  struct Waiting {
    std::string key;
    DType dtype;
    Shape shape;
    std::vector<std::byte> data;
  };
  void see(const Sight& sight) override;
  void write_line(const std::string& head, const Tensor& tensor);
  std::string keep(const Tensor& tensor, Measure& measure);
  std::string file_name();
  void write_shard();

  const RecorderOptions options_;
  std::string stage_, inside_;
  std::uint64_t count_ = 0;
  int files_ = 0;
  double seconds_ = 0;
  std::vector<std::string> lines_;
  std::vector<Waiting> waiting_;
  std::size_t waiting_bytes_ = 0;
  std::exception_ptr stopped_;
  bool told_ = false;
};

/// Calls `visit` with the elements of `tensor` in row-major order, piece by piece.
void for_each_piece(const Tensor& tensor,
                    const std::function<void(const std::byte* data, std::size_t elements)>& visit);

}  // namespace danceflux::align
