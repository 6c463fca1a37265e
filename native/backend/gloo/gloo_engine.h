// Collectives between CPU ranks on many hosts: Gloo's connections carry the bytes, sums are made here, in the
// pairwise tree. Every call begins with a short message from everybody to everybody, which tells who is
// missing and whether all ask for the same; a few numbers travel in it.
#pragma once
#include <memory>

#include "backend/communicator.h"

namespace danceflux::gloo_engine {

/// Engine options: interface (such as eth0) or address (of this host, as the other ranks reach it); default
/// what this host's name points to. Throws ERR_OPTION, ERR_DEVICE, ERR_COMMUNICATION.
std::unique_ptr<CommunicatorSetup> make_setup(const std::shared_ptr<Backend>& device,
                                              const CommunicatorOptions& options);

/// "" when Gloo can be used, otherwise why not.
std::string probe();

}  // namespace danceflux::gloo_engine
