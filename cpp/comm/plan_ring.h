// The plan channel within a host: one ring of bytes in shared memory, written by rank 0, read by every other rank at
// its own pace. Nothing polls: an end that has nothing to read or no room to write sleeps on a futex, and while there
// is somebody to wake, that is one call for all.
//
// The memory is a file without a name (memfd_create) that the ranks inherit, so nothing is left when they are gone,
// however they end. Fresh from the kernel, all zeros, it is an empty ring, which needs no preparation.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <vector>

#include "comm/plan_channel.h"

namespace minisgl {

inline constexpr int max_ring_ranks = 64;

struct PlanRingOptions {
  int size = 1;                       // ranks that share the ring, rank 0 included
  std::chrono::microseconds spin{0};  // how long a reader watches before it sleeps
  std::chrono::milliseconds stall_limit{plan_stall_limit};
  std::chrono::milliseconds check_interval{1000};  // a sleeper looks that often whether the other end lives
};

// Bytes of a file for a ring that holds `capacity` bytes.
std::size_t plan_ring_bytes(std::size_t capacity);

// `fd` stays the caller's and isn't needed afterwards. InputError where it can't be mapped.
std::unique_ptr<PlanSender> open_ring_sender(int fd, const PlanRingOptions& options);
std::unique_ptr<PlanReceiver> open_ring_receiver(int fd, int rank, const PlanRingOptions& options);

}  // namespace minisgl
