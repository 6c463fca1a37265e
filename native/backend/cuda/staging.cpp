#include "backend/cuda/staging.h"

#include <algorithm>
#include <cstring>

#include "backend/cuda/errors.h"

namespace danceflux::cuda {

// A destructor may meet a lost device: nothing here may throw.
Staging::~Staging() {
  for (const Piece& piece : pieces_) {
    if (piece.used) cudaEventSynchronize(piece.done);
    cudaEventDestroy(piece.done);
    cudaFreeHost(piece.memory);
  }
}

Staging::Piece& Staging::next() {
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

void Staging::upload(void* to, const void* host, std::size_t bytes, cudaStream_t stream) {
  for (std::size_t at = 0; at < bytes; at += kPiece) {
    const std::size_t count = std::min(kPiece, bytes - at);
    Piece& piece = next();
    std::memcpy(piece.memory, static_cast<const char*>(host) + at, count);
    check(cudaMemcpyAsync(static_cast<char*>(to) + at, piece.memory, count, cudaMemcpyHostToDevice, stream),
          "upload");
    check(cudaEventRecord(piece.done, stream), "upload");
    piece.used = true;
  }
}

// Two pieces take turns: one is copied to the caller while the other fills.
void Staging::download(void* host, const void* from, std::size_t bytes, cudaStream_t stream) {
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
    pieces_.reserve(kPieces);  // references stay good
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
