// Collectives between the ranks of one model. The backend is the file that was compiled: nccl.cpp in a CUDA build,
// no_nccl.cpp otherwise, where every function throws InputError.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/dtype.h"

namespace minisgl {

using StreamHandle = std::uintptr_t;  // a cudaStream_t; 0 is the default stream

// All calls enqueue on `stream` and return; they can be captured in a CUDA graph. Every rank makes the same calls in
// the same order, all on one stream or on streams that wait for each other. One thread at a time. Errors of the library
// throw InputError with its own words.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual int device() const = 0;  // ordinal of the GPU that all pointers are on

  // data: [count] f32, f16 or bf16, in place: the sum over the ranks.
  virtual void all_reduce_sum(void* data, std::int64_t count, DType dtype, StreamHandle stream) = 0;
  // input: [num_bytes]; output: [size, num_bytes], rank by rank.
  virtual void all_gather(const void* input, void* output, std::int64_t num_bytes, StreamHandle stream) = 0;
};

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
