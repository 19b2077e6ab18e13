// The engine's outputs until they are taken. Thread-safe; its descriptor is readable exactly while outputs wait.
#pragma once

#include <mutex>
#include <vector>

#include "engine/request.h"

namespace minisgl {

class CompletionQueue {
 public:
  CompletionQueue();  // throws std::system_error when the process has no descriptor left
  ~CompletionQueue();
  CompletionQueue(const CompletionQueue&) = delete;
  CompletionQueue& operator=(const CompletionQueue&) = delete;

  // Appends all of `outputs`; a drain sees all of them or none.
  void publish(std::vector<RequestOutput> outputs);
  // Takes everything, in the order in which it was published.
  std::vector<RequestOutput> drain();
  int event_fd() const { return event_fd_; }

 private:
  std::mutex mutex_;
  std::vector<RequestOutput> outputs_;
  int event_fd_;
};

}  // namespace minisgl
