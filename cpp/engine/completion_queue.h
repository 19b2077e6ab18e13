// What the engine has to say, until it is taken. Thread-safe; its descriptor is readable exactly while something
// waits.
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

  // Appends all of `outputs`; take() returns all of them or none.
  void publish(std::vector<RequestOutput> outputs);
  // Takes everything, in the order in which it was published.
  std::vector<RequestOutput> take();
  int event_fd() const { return event_fd_; }

 private:
  std::mutex mutex_;
  std::vector<RequestOutput> outputs_;
  int event_fd_;
};

}  // namespace minisgl
