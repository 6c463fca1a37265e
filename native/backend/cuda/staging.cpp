#include "backend/cuda/staging.h"

#include <algorithm>
#include <cstring>

#include "backend/cuda/errors.h"

namespace danceflux::cuda {

constexpr std::size_t kAlignment = 256;  // of a copy's source: unaligned ones are slower

// A destructor may meet a lost device: nothing here may throw.
Staging::~Staging() {
  for (const Piece& piece : pieces_) {
    if (piece.used) cudaEventSynchronize(piece.done);
    cudaEventDestroy(piece.done);
    cudaFreeHost(piece.memory);
  }
}

Staging::Piece& Staging::next() {
  pieces_.reserve(kPieces);  // references stay good
  if (pieces_.size() < kPieces) {
    Piece piece;
    check(cudaMallocHost(&piece.memory, kPiece), "pinned memory");
    if (const cudaError_t error = cudaEventCreateWithFlags(&piece.done, cudaEventDisableTiming)) {
      cudaFreeHost(piece.memory);
      check(error, "pinned memory");
    }
    pieces_.push_back(piece);
    return pieces_.back();
  }
  Piece& piece = pieces_[at_++ % kPieces];
  if (piece.used) check(cudaEventSynchronize(piece.done), "upload");
  piece.used = false;
  return piece;
}

void Staging::seal(cudaStream_t stream) {
  if (!open_) return;
  check(cudaEventRecord(open_->done, stream), "upload");
  open_->used = true;
  open_ = nullptr;
}

// A step uploads a few numbers here and there: a piece for each would have the host wait for the device after
// four of them.
void Staging::upload(void* to, const void* host, std::size_t bytes, cudaStream_t stream) {
  for (std::size_t at = 0; at < bytes;) {
    if (open_ && filled_ == kPiece) seal(stream);
    if (!open_) {
      open_ = &next();
      filled_ = 0;
    }
    const std::size_t count = std::min(kPiece - filled_, bytes - at);
    char* const staged = static_cast<char*>(open_->memory) + filled_;
    std::memcpy(staged, static_cast<const char*>(host) + at, count);
    check(cudaMemcpyAsync(static_cast<char*>(to) + at, staged, count, cudaMemcpyHostToDevice, stream),
          "upload");
    at += count;
    filled_ = std::min(kPiece, (filled_ + count + kAlignment - 1) / kAlignment * kAlignment);
  }
}

// Two pieces take turns: one is copied to the caller while the other fills.
void Staging::download(void* host, const void* from, std::size_t bytes, cudaStream_t stream) {
  seal(stream);
  Piece* filling = nullptr;
  std::size_t filled_at = 0, filled = 0;
  const auto finish = [&] {
    if (!filling) return;
    check(cudaEventSynchronize(filling->done), "download");
    filling->used = false;
    std::memcpy(static_cast<char*>(host) + filled_at, filling->memory, filled);
  };
  for (std::size_t at = 0; at < bytes; at += kPiece) {
    const std::size_t count = std::min(kPiece, bytes - at);
    Piece& piece = next();
    check(cudaMemcpyAsync(piece.memory, static_cast<const char*>(from) + at, count, cudaMemcpyDeviceToHost,
                          stream),
          "download");
    check(cudaEventRecord(piece.done, stream), "download");
    piece.used = true;
    finish();
    filling = &piece;
    filled_at = at;
    filled = count;
  }
  finish();
}

}  // namespace danceflux::cuda
