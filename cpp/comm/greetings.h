// The first bytes of TCP connections, read side by side: a stranger that says nothing keeps no rank waiting.
#pragma once

#include <chrono>
#include <cstddef>
#include <list>
#include <optional>
#include <vector>

#include "comm/deadline.h"
#include "comm/file_descriptor.h"

namespace minisgl {

class Greetings {
 public:
  struct Caller {
    FileDescriptor socket;
    std::vector<std::byte> bytes;  // the greeting, whole
  };

  // Every greeting has `num_bytes`. A connection that is slower than `limit` with it is closed.
  Greetings(FileDescriptor listener, std::size_t num_bytes, std::chrono::milliseconds limit)
      : listener_(std::move(listener)), num_bytes_(num_bytes), limit_(limit) {}

  // The next connection whose greeting has come; none when the deadline has passed.
  std::optional<Caller> next(Deadline deadline);

 private:
  struct Arrival {
    FileDescriptor socket;
    Deadline deadline;
    std::vector<std::byte> bytes;  // what has come
  };
  enum class State { incomplete, complete, over };

  void accept_one();
  State read(Arrival& arrival) const;

  FileDescriptor listener_;
  std::size_t num_bytes_;
  std::chrono::milliseconds limit_;
  std::list<Arrival> arrivals_;  // in the order in which they came, and so of their deadlines
};

}  // namespace minisgl
