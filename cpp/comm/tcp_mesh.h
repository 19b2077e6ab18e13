// A TCP connection to every other rank.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include "comm/file_descriptor.h"
#include "comm/tcp.h"

namespace minisgl {

// What goes to a rank and what comes from it in one exchange.
struct TcpMessages {
  const std::byte* send = nullptr;
  std::byte* receive = nullptr;
  std::size_t num_send = 0;  // bytes
  std::size_t num_receive = 0;
};

class TcpMesh {
 public:
  explicit TcpMesh(const TcpOptions& options);

  int rank() const { return options_.rank; }
  int size() const { return options_.size; }

  // Sends and receives everything at once; messages[rank] is for that rank, this rank's own is not read. What one rank
  // sends is what the other expects. Throws RankFailure where a connection ends or the time limit passes, and from then
  // on.
  void exchange(std::vector<TcpMessages> messages);
  // The limit of exchanges from now on.
  void set_time_limit(const TimeLimit& limit) { limit_ = limit; }

 private:
  [[noreturn]] void fail(int rank, const std::string& message);

  TcpOptions options_;
  TimeLimit limit_;
  std::vector<FileDescriptor> sockets_;  // by rank; none for this one
  std::string failure_;
  int culprit_ = -1;
};

}  // namespace minisgl
