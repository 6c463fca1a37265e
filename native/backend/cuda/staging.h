// Pinned host memory between the caller's and the device's, so that an upload returns before it has happened.
#pragma once
#include <cstddef>
#include <vector>

#include "backend/cuda/device_code.h"

namespace danceflux::cuda {

class Staging {
 public:
  static constexpr std::size_t kPiece = std::size_t{8} << 20;
  static constexpr std::size_t kPieces = 4;

  ~Staging();
  /// The host memory may be reused at once. Small uploads share a piece; waits only when all pieces are under
  /// way.
  void upload(void* to, const void* host, std::size_t bytes, cudaStream_t stream);
  /// Waits for the stream.
  void download(void* host, const void* from, std::size_t bytes, cudaStream_t stream);

 private:
  struct Piece {
    void* memory = nullptr;
    cudaEvent_t done = nullptr;
    bool used = false;
  };
  Piece& next();
  /// The piece that uploads share is under way from here on.
  void seal(cudaStream_t stream);

  std::vector<Piece> pieces_;
  std::size_t at_ = 0;
  Piece* open_ = nullptr;  // uploads share it, up to `filled_`
  std::size_t filled_ = 0;
};

}  // namespace danceflux::cuda
