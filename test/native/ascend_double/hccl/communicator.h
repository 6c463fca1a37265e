#pragma once
#include <memory>

#include "ascend_double/hccl/config.h"
#include "ascend_double/hccl/segment.h"
#include "ascend_double/runtime/stream.h"

namespace ascend_double {

struct Communicator {
  std::unique_ptr<Segment> segment;
  std::string id, name;
  HcclSettings settings;
  int device = 0;
  std::vector<void*> buffers;  // device memory that it pins
  std::uint64_t collectives = 0;
  std::atomic<bool> broken{false};
  ~Communicator();
};

Handles<Communicator>& communicators();
Communicator& communicator_of(HcclComm handle);

}  // namespace ascend_double
