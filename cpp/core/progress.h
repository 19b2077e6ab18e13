// How far a rank has come: what a watch outside the engine reads, without a lock, to tell a slow step from a stuck one.
#pragma once

#include <atomic>
#include <cstdint>

namespace minisgl {

class Progress {
 public:
  // Something was done: a task of an operation, a step, a piece of the weights. One thread at a time.
  void advance() noexcept { done_.store(done_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed); }
  std::uint64_t done() const noexcept { return done_.load(std::memory_order_relaxed); }

  // Whether the rank has something to do. While it has, it advances or is stuck; without work, or while it waits for
  // other ranks to come, it need not advance.
  void set_working(bool working) noexcept { working_.store(working, std::memory_order_relaxed); }
  bool working() const noexcept { return working_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> done_{0};
  std::atomic<bool> working_{false};
};

}  // namespace minisgl
