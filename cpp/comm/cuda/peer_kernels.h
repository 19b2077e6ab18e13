// Kernels that sum over ranks by writing into the other ranks' memory. See peer_kernels.cu for how.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "comm/communicator.h"

namespace minisgl::cuda {

constexpr int kMaxPeers = 8;
constexpr int kNumRegions = 3;  // they take turns, call by call

// State on the device, for its kernels alone.
struct PeerState {
  std::uint32_t region;          // the next call's
  std::uint32_t started_blocks;  // in the call at hand
  std::uint32_t last_slots;      // of the region of the last call: one per rank, or two
  std::uint32_t last_slot;       // its length in vectors
};

// Mapped memory of the host: what kernels and host say to each other.
struct PeerSignal {
  std::uint32_t give_up;  // host: stop waiting, now and later
  std::uint32_t missing;  // kernels: 1 + the rank whose data didn't come within the time limit
};

// What a kernel needs to know of the group.
struct PeerGroup {
  uint4* memory[kMaxPeers];  // by rank: [kNumRegions, region_vectors], as this device sees it
  std::int64_t region_vectors;
  PeerState* state;
  volatile PeerSignal* signal;
  std::uint64_t limit_ns;
  int rank;
  int size;
};

// Vectors of 16 bytes that a call takes of a region.
constexpr std::int64_t num_vectors(std::int64_t num_bytes) {
  return (num_bytes + 15) / 16;
}
constexpr std::int64_t one_shot_vectors(std::int64_t num_bytes, int size) {
  return size * num_vectors(num_bytes);
}
constexpr std::int64_t two_shot_vectors(std::int64_t num_bytes, int size) {
  return 2 * size * ((num_vectors(num_bytes) + size - 1) / size);
}

// Loads the kernels into the current device: the first launch of one can wait for what runs there, and a kernel that
// waits for other ranks would wait for ever.
void load_peer_kernels();

// Fills memory with the mark of what has not been written yet.
void mark_unwritten(uint4* memory, std::int64_t vectors, cudaStream_t stream);

// data: [count], in place. Each rank sends everything to all, and all sum everything.
void one_shot_sum(const PeerGroup& group, void* data, std::int64_t count, DType dtype, int num_processors,
                  cudaStream_t stream);
// Each rank gets its share from all, sums it and sends the sum to all.
void two_shot_sum(const PeerGroup& group, void* data, std::int64_t count, DType dtype, int num_processors,
                  cudaStream_t stream);
// Does what Communicator::all_reduce_add_rms_norm does, in one shot; false where a row has no whole number of vectors,
// more than kMaxFusedBytes, or a buffer isn't aligned to 16 bytes.
constexpr std::int64_t kMaxFusedBytes = 65536;
bool one_shot_sum_add_rms_norm(const PeerGroup& group, const SumAddRmsNorm& op, cudaStream_t stream);

}  // namespace minisgl::cuda
