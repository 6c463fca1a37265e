// Gloo's TCP transport behind a C interface: a mesh of connections between ranks, and transfers over it. No
// exception leaves it. What an error says goes to `error`, one line, at most `room` bytes with its end.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

struct GlooMesh;

/// Bytes that go to one rank or come from one; none: 0 bytes.
struct GlooPiece {
  void* data;
  std::size_t bytes;
};

/// A mesh that listens on the interface or the address given, or where the host's name points to when both
/// are empty. Null: failed.
GlooMesh* danceflux_gloo_open(const char* interface, const char* address, int rank, int size,
                              std::int64_t timeout_ms, char* error, std::size_t room);
/// Where `peer` reaches this rank; returns its size, at most danceflux_gloo_address_room.
std::size_t danceflux_gloo_address(GlooMesh* mesh, int peer, char* bytes, std::size_t room);
/// Blocks until the connection with `peer`, which told `bytes`, stands. False: failed.
bool danceflux_gloo_connect(GlooMesh* mesh, int peer, const char* bytes, std::size_t size, char* error,
                            std::size_t room);
/// In each of `lanes` at once sends sends[lane * size + rank] to every other rank and receives as much into
/// receives[...] from it. The ranks at the two ends give the same sizes and `tag`; tags up to tag + lanes - 1
/// are used once. False: failed, at `peer`.
bool danceflux_gloo_transfer(GlooMesh* mesh, std::uint64_t tag, int lanes, const GlooPiece* sends,
                             const GlooPiece* receives, std::int64_t timeout_ms, int* peer, char* error,
                             std::size_t room);
/// From any thread: transfers fail, and connections are closed.
void danceflux_gloo_abort(GlooMesh* mesh);
/// Nobody uses it any more.
void danceflux_gloo_close(GlooMesh* mesh);
}

constexpr std::size_t danceflux_gloo_address_room = 192;
