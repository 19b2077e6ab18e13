// The communicator between GPUs: NCCL, and kernels of our own that write into the other GPUs' memory, for small sums.
// In a build without CUDA every function but num_gpus throws InputError.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "comm/communicator.h"

namespace minisgl {

using NcclUniqueId = std::array<char, 128>;

// How GPUs sum.
enum class GpuSums {
  fastest,     // of the ways below by size, as measured here and now; only those that are possible here
  nccl,        // NCCL, in place
  registered,  // NCCL, through the registered buffer, in pieces of its size
  peers,       // through each other's memory, in pieces that there is memory for; each element in the order of ranks
};

struct NcclOptions {
  std::string library = {};  // path of libnccl.so.2; empty: what the dynamic linker finds
  int device = 0;            // ordinal
  GpuSums sums = GpuSums::fastest;
  // Size of a buffer registered with NCCL, for the two ways of summing that may use it; 0: no buffer.
  std::int64_t max_buffer_bytes = 0;
  // The limit of the start; until set_time_limit() also of a wait (Communicator::begin_wait) and of a sum through peer
  // memory.
  std::chrono::milliseconds timeout{30'000};
};

// An id that ranks found one NCCL group with.
NcclUniqueId make_nccl_unique_id(const std::string& library);

// Joins the GPUs of the ranks that `host` joins; every rank calls it. `host` is used during the call only: it carries
// NCCL's id, and tells which ranks are processes of this host. Those are watched: a death ends the others' collectives
// at once. name() tells how the GPUs sum, and how long it took to find out.
std::unique_ptr<Communicator> make_gpu_communicator(const NcclOptions& options, Communicator& host);

// GPUs that this process sees; 0 where there is no driver, and in a build without CUDA.
int num_gpus();

}  // namespace minisgl
