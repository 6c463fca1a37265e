// What a test may make the stand-in for libcudnn.so.9 be. Whole programs:
// DANCEFLUX_FAKE_CUDNN=VERSION[:REFUSED].
#pragma once
#include <atomic>
#include <cstddef>

struct FakeCudnn {
  enum Refused : unsigned {
    unified = 1,     // attention as one operation
    composite = 2,   // attention as a graph of small ones
    backward = 4,    // the gradients of attention, in either way
    repeatable = 8,  // engines that give the same bits again
  };
  /// As cudnnGetVersion counts; read by a device when it is opened.
  std::atomic<std::size_t> version{92400};
  std::atomic<unsigned> refused{0};
  /// Graphs executed so far: of one operation of attention, of several operations, and by engines that give
  /// other bits at each run.
  std::atomic<int> unified_runs{0}, composite_runs{0}, unsteady_runs{0};
};

extern "C" FakeCudnn* fake_cudnn();
