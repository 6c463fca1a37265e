// The options of a CUDA device (lib/options.ts documents them).
#pragma once
#include <string>

#include "backend/options.h"

namespace danceflux::cuda {

enum class Determinism : unsigned char { off, run_to_run, strict };

struct Options {
  Determinism determinism = Determinism::strict;
  bool tf32 = false;           // products of f32 through TF32, of fewer bits
  bool own_attention = false;  // never by cuDNN
  bool synchronous = false;    // wait after every op, so that an error names the op that made it

  bool graphs = false;  // recurring work is recorded as a CUDA graph

  /// Throws ERR_OPTION. Options of collectives (nccl.*, hccl.*) are passed over: every device gets them.
  static Options parse(const std::string& json);
};

}  // namespace danceflux::cuda
