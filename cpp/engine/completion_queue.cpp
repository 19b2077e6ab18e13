// A vector under a mutex and an eventfd that is written when the vector stops being empty.
#include "engine/completion_queue.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <iterator>
#include <system_error>
#include <utility>

#include "core/error.h"

namespace minisgl {

CompletionQueue::CompletionQueue() : event_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (event_fd_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
}

CompletionQueue::~CompletionQueue() {
  close(event_fd_);
}

void CompletionQueue::publish(std::vector<RequestOutput> outputs) {
  if (outputs.empty()) return;
  const std::lock_guard lock(mutex_);
  const bool was_empty = outputs_.empty();
  if (was_empty) {
    outputs_ = std::move(outputs);
  } else {
    outputs_.insert(outputs_.end(), std::make_move_iterator(outputs.begin()), std::make_move_iterator(outputs.end()));
  }
  if (was_empty) MINISGL_CHECK(eventfd_write(event_fd_, 1) == 0, "errno ", errno);
}

std::vector<RequestOutput> CompletionQueue::take() {
  const std::lock_guard lock(mutex_);
  if (!outputs_.empty()) {
    eventfd_t count;
    MINISGL_CHECK(eventfd_read(event_fd_, &count) == 0, "errno ", errno);
  }
  return std::exchange(outputs_, {});
}

}  // namespace minisgl
