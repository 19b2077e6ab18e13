// Which way of summing is the fastest for which size, measured.
#pragma once

#include <cstdint>
#include <functional>

#include "comm/communicator.h"
#include "comm/cuda/peer_all_reduce.h"

namespace minisgl {

struct SizeClasses {
  std::int64_t max_one_shot_bytes = 0;  // one shot up to here,
  std::int64_t max_two_shot_bytes = 0;  // from there on two shots up to here, and NCCL above
};

// Times all three by doubling sizes; rank 0's times decide for all. Called by all ranks together.
SizeClasses measure_size_classes(PeerAllReduce& peers, Communicator& host,
                                 const std::function<void(void* data, std::int64_t count, cudaStream_t stream)>& nccl);

}  // namespace minisgl
