// Memory that ranks share, and the one way in which they meet in it.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "comm/communicator.h"

namespace minisgl {

// Time goes in epochs. In each, every rank writes into its slot and calls exchange(); then it may read all ranks' slots
// of that epoch until it calls exchange() again. A rank has two slots that take turns: a rank that is through
// exchange() knows that all have read what was written an epoch before, so no rank ever waits for readers.
class ShmGroup {
 public:
  static constexpr std::size_t kSlotBytes = std::size_t{256} << 10;

  // Bytes of zeroed memory for a group of `size` ranks.
  static std::size_t num_bytes(int size);

  // pids: rank by rank; equal for ranks that are threads of one process.
  ShmGroup(std::shared_ptr<std::byte> memory, int rank, std::vector<pid_t> pids, std::chrono::milliseconds timeout);
  ~ShmGroup();  // the other ranks' later collectives fail
  ShmGroup(const ShmGroup&) = delete;
  ShmGroup& operator=(const ShmGroup&) = delete;

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(pids_.size()); }

  std::byte* own_slot() { return slot(rank_, epoch_ + 1); }                // the next epoch's
  const std::byte* slot_of(int rank) const { return slot(rank, epoch_); }  // this epoch's
  // Ends an epoch. Throws RankFailure where a rank has died, has left, or doesn't come within the time limit, and from
  // then on.
  void exchange();
  // Whether to spin before sleeping: where every rank can have a processor to itself. After a first exchange().
  void choose_waiting();

  // The limit of exchanges from now on.
  void set_time_limit(const TimeLimit& limit) { limit_ = limit; }

  // Notes, from any thread, that the process of that rank has ended.
  void report_death(int rank);

 private:
  struct Header;
  enum class Reason : std::uint32_t { died = 1, left, late };

  std::byte* slot(int rank, std::uint32_t epoch) const;
  void wait_for(int rank, std::chrono::steady_clock::time_point deadline);
  void fail(int rank, Reason reason);
  [[noreturn]] void throw_failure() const;

  std::shared_ptr<std::byte> memory_;
  Header& header_;
  int rank_;
  std::vector<pid_t> pids_;
  TimeLimit limit_;
  std::uint32_t epoch_ = 0;
  int num_spins_ = 0;
};

}  // namespace minisgl
