// The door of the engine: what others ask for, until the engine thread takes it. Thread-safe; knows which ids are live,
// so that it can refuse at once.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <unordered_set>
#include <variant>
#include <vector>

#include "core/progress.h"
#include "engine/request.h"

namespace minisgl {

struct Submission {
  Request request;
  std::chrono::steady_clock::time_point time;
};
struct Abort {
  std::uint64_t id;
};
using Command = std::variant<Submission, Abort>;

class Inbox {
 public:
  enum class Answer : std::uint8_t { accepted, duplicate, full, closed };

  // Accepts at most `max_live` requests that are not forgotten yet. `progress` (which outlives it) hears whether there
  // are any.
  Inbox(std::int64_t max_live, Progress& progress) : max_live_(max_live), progress_(progress) {}

  Answer submit(Request request);
  void abort(std::uint64_t id);  // nothing for ids that are not live
  void request_stop();
  std::int64_t num_submissions() const;  // those that the engine thread did not take yet

  // Ends a wait of take(), or the next one.
  void wake();
  // Takes all commands in order, first waiting until there is one (or the stop, or wake()), or until `until` where
  // there is such a time. False when the engine is to stop.
  bool take(std::optional<std::chrono::steady_clock::time_point> until, std::vector<Command>& commands);
  // These requests have ended; their ids may be used again.
  void forget(std::span<const std::uint64_t> ids);
  // Refuses everything from now on and returns the ids that are still live.
  std::vector<std::uint64_t> close();
  // Tells `progress` now, too.
  void show_work();

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Command> commands_;
  std::unordered_set<std::uint64_t> live_;
  std::int64_t max_live_;
  Progress& progress_;
  std::int64_t num_submissions_ = 0;
  bool stopping_ = false;
  bool is_woken_ = false;
  bool closed_ = false;
};

}  // namespace minisgl
