// Sleeping on a word of shared memory, and waking who sleeps.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <ctime>

namespace minisgl {

static_assert(sizeof(std::atomic<std::uint32_t>) == 4 && std::atomic<std::uint32_t>::is_always_lock_free);

// Sleeps while the word has the value `seen`. False when the deadline has passed; true doesn't mean that the word has
// changed.
inline bool futex_wait(
    const std::atomic<std::uint32_t>& word, std::uint32_t seen,
    std::chrono::steady_clock::time_point deadline) {  // CLOCK_MONOTONIC, as the bitset's wait has it
  const auto since_boot = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline.time_since_epoch()).count();
  const timespec until{static_cast<time_t>(since_boot / 1'000'000'000), static_cast<long>(since_boot % 1'000'000'000)};
  return syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, seen, &until, nullptr, FUTEX_BITSET_MATCH_ANY) == 0 ||
         errno != ETIMEDOUT;
}

inline void futex_wake(const std::atomic<std::uint32_t>& word, int at_most) {
  syscall(SYS_futex, &word, FUTEX_WAKE, at_most, nullptr, nullptr, 0);
}

}  // namespace minisgl
