// What a stream of the emulation is: work is done at once, or kept while the stream records a graph. The fake
// libraries, which are libraries of their own, know no more of the emulation than this.
#pragma once
#include <functional>
#include <vector>

#include "stand_in/cuda_runtime_api.h"

struct CUstream_st {
  std::vector<std::function<void()>>* recording = nullptr;
  bool spoiled = false;  // the recording is no good any more
};

namespace emulated {

/// What `work` needs it must hold itself: it may be done later, and more than once.
template <class Work>
void put(cudaStream_t stream, Work work) {
  if (stream && stream->recording) {
    stream->recording->push_back(std::move(work));
  } else {
    work();
  }
}

}  // namespace emulated
