// The communicator between GPUs: NCCL, and kernels of our own that write into the other GPUs' memory, for small sums.
// In a build without CUDA every function but num_gpus throws InputError.
#pragma once

#include <sys/types.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace minisgl {

using NcclUniqueId = std::array<char, 128>;

// When GPUs sum through each other's memory.
enum class PeerSums {
  never,
  where_faster,  // than NCCL, as measured here and now; never, where they can't reach each other's memory
  always,        // up to the sizes that there is memory for
};

struct NcclOptions {
  std::string library;  // path of libnccl.so.2; empty: what the dynamic linker finds
  int rank = 0;
  int size = 1;
  int device = 0;  // ordinal
  // Sums of up to this many bytes go through a buffer registered with NCCL; 0: no buffer, all sums in place.
  std::int64_t max_buffer_bytes = 0;
  // Processes of the ranks, rank by rank; 0: on another host. Those that are known are watched: a death ends the
  // others' collectives at once. Empty: no process is watched, and only the time limit speaks.
  std::vector<pid_t> pids;
  // The limit of the start; until set_time_limit() also of a wait (Communicator::begin_wait) and of a sum through peer
  // memory.
  std::chrono::milliseconds timeout{30'000};
};

// Rank 0 makes the id and hands it to the other ranks.
NcclUniqueId make_nccl_unique_id(const std::string& library);
// Waits until every rank has called it with the same id.
std::unique_ptr<Communicator> make_nccl_communicator(const NcclUniqueId& id, const NcclOptions& options);

// The same, with one-shot and two-shot sums through peer memory for small messages (name() tells). `host` joins the
// same ranks and is used during the call only; it also carries the id and the processes, so options.pids is not read.
std::unique_ptr<Communicator> make_gpu_communicator(const NcclOptions& options, Communicator& host,
                                                    PeerSums peer_sums = PeerSums::where_faster);

// GPUs that this process sees; 0 where there is no driver, and in a build without CUDA.
int num_gpus();

}  // namespace minisgl
