// The NCCL communicator. The backend is the file that was compiled: nccl.cpp in a CUDA build, no_nccl.cpp otherwise,
// where every function but num_gpus throws InputError.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "comm/communicator.h"

namespace minisgl {

using NcclUniqueId = std::array<char, 128>;

struct NcclOptions {
  std::string library;  // path of libnccl.so.2; empty: what the dynamic linker finds
  int rank = 0;
  int size = 1;
  int device = 0;  // ordinal
  // Sums of up to this many bytes go through a buffer registered with NCCL; 0: no buffer, all sums in place.
  std::int64_t max_buffer_bytes = 0;
};

// Rank 0 makes the id and hands it to the other ranks.
NcclUniqueId make_nccl_unique_id(const std::string& library);
// Waits until every rank has called it with the same id.
std::unique_ptr<Communicator> make_nccl_communicator(const NcclUniqueId& id, const NcclOptions& options);
// GPUs that this process sees; 0 where there is no driver, and in a build without CUDA.
int num_gpus();

}  // namespace minisgl
