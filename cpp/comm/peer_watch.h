// Notices that the process of another rank on this host has ended.
#pragma once

#include <sys/types.h>

#include <functional>
#include <thread>
#include <vector>

#include "comm/file_descriptor.h"

namespace minisgl {

// Whether the process exists and is stopped (SIGSTOP, a debugger).
bool is_stopped(pid_t pid);
// Whether it has ended, though its parent may not have noticed yet.
bool has_ended(pid_t pid);

// A thread that sleeps until a process ends (pidfd). Linux before 5.3 has no such thing: then nothing is noticed, and
// only time limits speak.
class PeerWatch {
 public:
  // pids: rank by rank; this process's own and 0 are left out. on_death(rank) runs on the watch's thread, once for each
  // rank whose process ends.
  PeerWatch(const std::vector<pid_t>& pids, std::function<void(int rank)> on_death);
  ~PeerWatch();
  PeerWatch(const PeerWatch&) = delete;
  PeerWatch& operator=(const PeerWatch&) = delete;

 private:
  struct Peer {
    int rank;
    FileDescriptor process;  // none: it had ended before it could be watched
  };
  void run();

  std::vector<Peer> peers_;
  std::function<void(int)> on_death_;
  FileDescriptor stop_;  // an eventfd
  std::thread thread_;
};

}  // namespace minisgl
