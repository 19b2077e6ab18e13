// Rank 0's word to the other ranks: frames of bytes, each of them to every rank, in order. Ranks of rank 0's host read
// a ring in shared memory (plan_ring.h), those of other hosts a TCP connection (plan_tcp.h).
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <vector>

#include "comm/communicator.h"

namespace minisgl {

// receive() was told to end by interrupt().
class ChannelInterrupted : public std::runtime_error {
 public:
  ChannelInterrupted() : std::runtime_error("interrupted while waiting for a plan") {}
};

// Larger frames are an error at both ends.
inline constexpr std::size_t max_plan_frame_bytes = std::size_t{64} << 20;
// A rank that takes nothing for so long while rank 0 has more for it than the channel holds is lost; and a rank of
// another host that answers nothing for so long.
inline constexpr std::chrono::milliseconds plan_stall_limit{8000};

class PlanSender {
 public:
  virtual ~PlanSender() = default;
  // One thread at a time. Returns when the frame is on its way to every rank; waits for a rank that is far behind.
  // Throws RankFailure: that rank is dead, stuck or out of reach.
  virtual void send(std::span<const std::byte> frame) = 0;
};

// Rank 0's way to the other ranks; none for a single rank.
using PlanSenders = std::vector<std::unique_ptr<PlanSender>>;

class PlanReceiver {
 public:
  virtual ~PlanReceiver() = default;
  // The next frame, valid until the next call. One thread at a time. Throws RankFailure when rank 0 is gone.
  virtual std::span<const std::byte> receive() = 0;
  // Ends the receive() at hand and all later ones with ChannelInterrupted. From any thread.
  virtual void interrupt() = 0;
};

}  // namespace minisgl
