// Epochs over futexes in shared memory.
#include "comm/shm_group.h"

#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <string>
#include <utility>

#include "comm/futex.h"
#include "comm/peer_watch.h"
#include "core/error.h"
#include "core/pause.h"

namespace minisgl {
namespace {

using Clock = std::chrono::steady_clock;

// Some 50 us on x86: longer than waking a sleeper takes, short enough to leave the core to others after it.
constexpr int kSpins = 800;

// The word that a rank's epochs are counted in: two an epoch, and one when there is a failure to look at. Wraps.
constexpr std::uint32_t kLook = 1;
constexpr std::uint32_t kEpoch = 2;

}  // namespace

struct ShmGroup::Header {
  struct alignas(64) Line {
    std::atomic<std::uint32_t> arrived;   // the rank's epochs, see kEpoch
    std::atomic<std::uint32_t> sleepers;  // ranks that may sleep on `arrived`
    cpu_set_t processors;                 // those that the rank may run on
  };
  alignas(64) std::atomic<std::uint32_t> failure;  // the first: rank | reason << 16; 0: none
  Line lines[];                                    // [size]
};

std::size_t ShmGroup::num_bytes(int size) {
  const auto num_ranks = static_cast<std::size_t>(size);
  return sizeof(Header) + num_ranks * (sizeof(Header::Line) + 2 * kSlotBytes);
}

ShmGroup::ShmGroup(std::shared_ptr<std::byte> memory, int rank, std::vector<pid_t> pids,
                   std::chrono::milliseconds timeout)
    : memory_(std::move(memory)),
      header_(*reinterpret_cast<Header*>(memory_.get())),
      rank_(rank),
      pids_(std::move(pids)),
      limit_{timeout} {
  sched_getaffinity(0, sizeof(cpu_set_t), &header_.lines[rank_].processors);
}

ShmGroup::~ShmGroup() {
  header_.lines[rank_].arrived.fetch_or(kLook);
  futex_wake(header_.lines[rank_].arrived, INT_MAX);
}

std::byte* ShmGroup::slot(int rank, std::uint32_t epoch) const {
  std::byte* slots = memory_.get() + sizeof(Header) + static_cast<std::size_t>(size()) * sizeof(Header::Line);
  return slots + (static_cast<std::size_t>(rank) * 2 + epoch % 2) * kSlotBytes;
}

void ShmGroup::exchange() {
  if (header_.failure.load(std::memory_order_relaxed) != 0) throw_failure();
  ++epoch_;
  Header::Line& own = header_.lines[rank_];
  own.arrived.fetch_add(kEpoch);  // sequentially consistent, like the look at the sleepers and theirs at this
  if (own.sleepers.load() != 0) futex_wake(own.arrived, INT_MAX);
  const auto deadline = Clock::now() + limit_.time;
  for (int rank = 0; rank < size(); ++rank)
    if (rank != rank_) wait_for(rank, deadline);
}

void ShmGroup::wait_for(int rank, Clock::time_point deadline) {
  Header::Line& line = header_.lines[rank];
  const auto has_come = [&](std::uint32_t arrived) {
    return static_cast<std::int32_t>((arrived & ~kLook) - epoch_ * kEpoch) >= 0;
  };
  for (int spin = 0; spin < num_spins_; ++spin) {
    if (has_come(line.arrived.load(std::memory_order_acquire))) return;
    pause_briefly();
  }
  line.sleepers.fetch_add(1);
  std::uint32_t arrived = line.arrived.load();
  while (!has_come(arrived) && (arrived & kLook) == 0) {
    if (!futex_wait(line.arrived, arrived, deadline)) fail(rank, Reason::late);
    arrived = line.arrived.load();
  }
  line.sleepers.fetch_sub(1);
  if (has_come(arrived)) return;
  fail(rank, Reason::left);  // unless there was a failure before
  throw_failure();
}

void ShmGroup::choose_waiting() {
  cpu_set_t all;
  CPU_ZERO(&all);
  for (int rank = 0; rank < size(); ++rank) CPU_OR(&all, &all, &header_.lines[rank].processors);
  num_spins_ = CPU_COUNT(&all) >= size() ? kSpins : 0;
}

void ShmGroup::report_death(int rank) {
  fail(rank, Reason::died);
}

void ShmGroup::fail(int rank, Reason reason) {
  std::uint32_t none = 0;
  const auto failure = static_cast<std::uint32_t>(rank) | static_cast<std::uint32_t>(reason) << 16;
  if (!header_.failure.compare_exchange_strong(none, failure)) return;
  for (int waited_for = 0; waited_for < size(); ++waited_for) {
    header_.lines[waited_for].arrived.fetch_or(kLook);
    futex_wake(header_.lines[waited_for].arrived, INT_MAX);
  }
}

void ShmGroup::throw_failure() const {
  const std::uint32_t failure = header_.failure.load();
  const auto rank = static_cast<int>(failure & 0xffffu);
  const pid_t pid = pids_[static_cast<std::size_t>(rank)];
  const std::string who = concat("rank ", rank, " (process ", pid, ")");
  switch (static_cast<Reason>(failure >> 16)) {
    case Reason::died: throw RankFailure(rank, who + " has died");
    case Reason::left: throw RankFailure(rank, who + " has left the group");
    case Reason::late: break;
  }
  throw RankFailure(rank, concat(who, " didn't come to a collective within ", text_of(limit_),
                                 is_stopped(pid) ? " and is stopped" : ""));
}

}  // namespace minisgl
