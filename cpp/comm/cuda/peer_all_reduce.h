// Sums over GPUs of one host through memory that each can write in the others'.
#pragma once

#include <sys/types.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "comm/communicator.h"
#include "comm/cuda/peer_kernels.h"
#include "core/cuda/runtime.h"

namespace minisgl {

enum class PeerAlgorithm { one_shot, two_shot };

class PeerAllReduce {
 public:
  // Memory of this GPU that the ranks write into, for sums of up to so many bytes; called by all ranks of `host` (which
  // is used here only) together. Nothing, on all ranks, where a GPU can't reach another's memory; `reason` says why.
  static std::unique_ptr<PeerAllReduce> make(Communicator& host, int device, std::int64_t max_one_shot_bytes,
                                             std::int64_t max_two_shot_bytes, std::chrono::milliseconds timeout,
                                             std::string& reason);
  // Doesn't wait for other ranks: none may be in a sum.
  ~PeerAllReduce();
  PeerAllReduce(const PeerAllReduce&) = delete;
  PeerAllReduce& operator=(const PeerAllReduce&) = delete;

  bool fits(PeerAlgorithm algorithm, std::int64_t num_bytes) const;
  // The device is the calling thread's. What doesn't fit is a CheckError.
  void all_reduce_sum(PeerAlgorithm algorithm, void* data, std::int64_t count, DType dtype, cudaStream_t stream);
  // False, with nothing done, for what doesn't fit and what the kernel can't do.
  bool all_reduce_add_rms_norm(const SumAddRmsNorm& op, cudaStream_t stream);

  // How long kernels that are launched or recorded from now on wait for the other ranks.
  void set_time_limit(std::chrono::milliseconds limit);
  // Ends all waiting on the device, now and later; from any thread.
  void give_up();
  // The rank whose data didn't come within the time limit.
  std::optional<int> missing_rank() const;

 private:
  // What a rank tells the others of its memory.
  struct Offer {
    std::array<char, 64> host;
    pid_t pid;
    int device;
    void* address;  // for ranks that are threads of the same process
    cudaIpcMemHandle_t handle;
  };

  PeerAllReduce() = default;
  // The three steps of make(): this rank's memory, what the others must know of it, and theirs. They throw CheckError.
  void allocate(const Communicator& host, int device, std::int64_t max_one_shot_bytes, std::int64_t max_two_shot_bytes);
  Offer offer(int device) const;
  void open(const std::vector<Offer>& offers, const Offer& own);

  cuda::PeerGroup group_{};
  CudaHandle<void*, cudaFree> memory_;
  CudaHandle<void*, cudaFree> state_;
  PinnedMemory signal_;
  std::vector<CudaHandle<void*, cudaIpcCloseMemHandle>> opened_;  // other processes' memory
  std::int64_t max_one_shot_bytes_ = 0;
  std::int64_t max_two_shot_bytes_ = 0;
  int num_processors_ = 0;
};

}  // namespace minisgl
