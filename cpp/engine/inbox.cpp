// One mutex, held for a few instructions; the engine thread sleeps on the condition variable when it has no work.
#include "engine/inbox.h"

#include <utility>

namespace minisgl {

Inbox::Answer Inbox::submit(Request request) {
  Submission submission{std::move(request), std::chrono::steady_clock::now()};
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return Answer::closed;
    if (live_.contains(submission.request.id)) return Answer::duplicate;
    if (static_cast<std::int64_t>(live_.size()) >= max_live_) return Answer::full;
    live_.insert(submission.request.id);
    commands_.emplace_back(std::move(submission));
    ++num_submissions_;
    progress_.set_working(true);
  }
  changed_.notify_one();
  return Answer::accepted;
}

void Inbox::abort(std::uint64_t id) {
  {
    const std::lock_guard lock(mutex_);
    if (closed_ || !live_.contains(id)) return;
    commands_.emplace_back(Abort{id});
  }
  changed_.notify_one();
}

void Inbox::request_stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
}

std::int64_t Inbox::num_submissions() const {
  const std::lock_guard lock(mutex_);
  return num_submissions_;
}

void Inbox::wake() {
  {
    const std::lock_guard lock(mutex_);
    is_woken_ = true;
  }
  changed_.notify_one();
}

bool Inbox::take(std::optional<std::chrono::steady_clock::time_point> until, std::vector<Command>& commands) {
  commands.clear();
  std::unique_lock lock(mutex_);
  const auto has_news = [this] { return stopping_ || is_woken_ || !commands_.empty(); };
  if (!until) {
    changed_.wait(lock, has_news);
  } else if (*until > std::chrono::steady_clock::now()) {
    changed_.wait_until(lock, *until, has_news);
  }
  is_woken_ = false;
  commands_.swap(commands);
  num_submissions_ = 0;
  return !stopping_;
}

void Inbox::forget(std::span<const std::uint64_t> ids) {
  if (ids.empty()) return;
  const std::lock_guard lock(mutex_);
  for (const std::uint64_t id : ids) live_.erase(id);
  progress_.set_working(!live_.empty());
}

std::vector<std::uint64_t> Inbox::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  commands_.clear();
  num_submissions_ = 0;
  const std::vector<std::uint64_t> ids(live_.begin(), live_.end());
  live_.clear();
  progress_.set_working(false);
  return ids;
}

void Inbox::show_work() {
  const std::lock_guard lock(mutex_);
  progress_.set_working(!live_.empty());
}

}  // namespace minisgl
