#include "backend/gloo/gloo_bridge.h"

#include <gloo/transport/tcp/device.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

using gloo::transport::UnboundBuffer;
using std::chrono::milliseconds;

struct GlooMesh {
  std::shared_ptr<gloo::transport::Device> device;
  std::shared_ptr<gloo::transport::Context> context;

  GlooMesh(const gloo::transport::tcp::attr& attributes, int rank, int size, milliseconds timeout)
      : device(gloo::transport::tcp::CreateDevice(attributes)), context(device->createContext(rank, size)) {
    context->setTimeout(timeout);
    for (int peer = 0; peer < size; ++peer)
      if (peer != rank) context->createPair(peer);
  }
  std::unique_ptr<UnboundBuffer> buffer(const GlooPiece& piece) const {
    return context->createUnboundBuffer(piece.data, piece.bytes);
  }
};

namespace {

/// Gloo's messages name its source file first and may have lines.
void tell(std::string words, char* error, std::size_t room) {
  if (words.compare(0, 1, "[") == 0 && words.find("] ") != std::string::npos)
    words = words.substr(words.find("] ") + 2);
  std::replace(words.begin(), words.end(), '\n', ' ');
  const std::size_t length = std::min(words.size(), room - 1);
  words.copy(error, length);
  error[length] = '\0';
}

template <class Body>
bool guarded(char* error, std::size_t room, Body body) {
  try {
    body();
    return true;
  } catch (const std::exception& thrown) {
    tell(thrown.what(), error, room);
  } catch (...) {
    tell("an exception without words", error, room);
  }
  return false;
}

}  // namespace

GlooMesh* danceflux_gloo_open(const char* interface, const char* address, int rank, int size,
                              std::int64_t timeout_ms, char* error, std::size_t room) {
  GlooMesh* mesh = nullptr;
  guarded(error, room, [&] {
    gloo::transport::tcp::attr attributes;
    attributes.iface = interface;
    attributes.hostname = address;
    mesh = new GlooMesh(attributes, rank, size, milliseconds(timeout_ms));
  });
  return mesh;
}

std::size_t danceflux_gloo_address(GlooMesh* mesh, int peer, char* bytes, std::size_t room) {
  const std::vector<char> address = mesh->context->getPair(peer)->address().bytes();
  const std::size_t size = std::min(address.size(), room);
  std::memcpy(bytes, address.data(), size);
  return size;
}

bool danceflux_gloo_connect(GlooMesh* mesh, int peer, const char* bytes, std::size_t size, char* error,
                            std::size_t room) {
  return guarded(error, room, [&] { mesh->context->getPair(peer)->connect({bytes, bytes + size}); });
}

bool danceflux_gloo_transfer(GlooMesh* mesh, std::uint64_t tag, int lanes, const GlooPiece* sends,
                             const GlooPiece* receives, std::int64_t timeout_ms, int* peer, char* error,
                             std::size_t room) {
  *peer = -1;
  return guarded(error, room, [&] {
    const int ranks = mesh->context->size;
    const auto pieces = static_cast<std::size_t>(lanes * ranks);
    std::vector<std::unique_ptr<UnboundBuffer>> from(pieces), to(pieces);
    // Each rank begins with its right neighbour, so that not all talk to one at first.
    const auto each = [&](auto body) {
      for (int lane = 0; lane < lanes; ++lane) {
        for (int distance = 1; distance < ranks; ++distance) {
          *peer = (mesh->context->rank + distance) % ranks;
          body(static_cast<std::size_t>(lane * ranks + *peer), tag + static_cast<std::uint64_t>(lane));
        }
      }
    };
    each([&](std::size_t at, std::uint64_t slot) {
      if (receives[at].bytes > 0) (from[at] = mesh->buffer(receives[at]))->recv(*peer, slot);
    });
    each([&](std::size_t at, std::uint64_t slot) {
      if (sends[at].bytes > 0) (to[at] = mesh->buffer(sends[at]))->send(*peer, slot);
    });
    const milliseconds timeout(timeout_ms);
    each([&](std::size_t at, std::uint64_t) {
      if (from[at]) from[at]->waitRecv(nullptr, timeout);
    });
    each([&](std::size_t at, std::uint64_t) {
      if (to[at]) to[at]->waitSend(nullptr, timeout);
    });
  });
}

void danceflux_gloo_abort(GlooMesh* mesh) {
  char ignored[8];
  // The one way of the public interface to wake everybody who waits: a wait that runs out ends all pairs.
  guarded(ignored, sizeof ignored, [&] {
    char nothing = 0;
    mesh->buffer({&nothing, 1})->waitRecv(nullptr, milliseconds(1));
  });
}

void danceflux_gloo_close(GlooMesh* mesh) {
  char ignored[8];
  guarded(ignored, sizeof ignored, [&] { delete mesh; });
}
