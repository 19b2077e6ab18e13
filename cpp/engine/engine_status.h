// What an engine says of itself, to whoever asks. Thread-safe.
#pragma once

#include <mutex>
#include <string>
#include <utility>

#include "engine/options.h"

namespace minisgl {

class EngineStatus {
 public:
  void set_stats(EngineStats stats) {
    const std::lock_guard lock(mutex_);
    stats_ = std::move(stats);
  }
  // The engine thread died of this, by the fault of that rank (-1: of none), and every request with it.
  void fail(std::string what, int blamed_rank) {
    const std::lock_guard lock(mutex_);
    failure_ = std::move(what);
    blamed_rank_ = blamed_rank;
    stats_.num_running = stats_.num_waiting = 0;
    stats_.waiting_by_priority.clear();
  }

  EngineStats stats() const {
    const std::lock_guard lock(mutex_);
    return stats_;
  }
  std::string failure() const {  // empty: none
    const std::lock_guard lock(mutex_);
    return failure_;
  }
  int blamed_rank() const {
    const std::lock_guard lock(mutex_);
    return blamed_rank_;
  }

 private:
  mutable std::mutex mutex_;
  EngineStats stats_;
  std::string failure_;
  int blamed_rank_ = -1;
};

}  // namespace minisgl
