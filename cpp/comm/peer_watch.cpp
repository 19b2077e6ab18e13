// Sleeps on the pidfds of the other ranks.
#include "comm/peer_watch.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/quiet_thread.h"

namespace minisgl {

namespace {

// A process's state, a letter of /proc/PID/stat; 0: there is no such process.
char state_of(pid_t pid) {
  std::FILE* file = std::fopen(concat("/proc/", pid, "/stat").c_str(), "re");
  if (!file) return 0;
  char state = 0;
  const int found = std::fscanf(file, "%*d (%*[^)]) %c", &state);
  std::fclose(file);
  return found == 1 ? state : '\0';
}

}  // namespace

bool is_stopped(pid_t pid) {
  const char state = state_of(pid);
  return state == 'T' || state == 't';
}

bool has_ended(pid_t pid) {
  const char state = state_of(pid);
  return state == 0 || state == 'Z' || state == 'X';
}

PeerWatch::PeerWatch(const std::vector<pid_t>& pids, std::function<void(int rank)> on_death)
    : on_death_(std::move(on_death)) {
  for (std::size_t rank = 0; rank < pids.size(); ++rank) {
    if (pids[rank] == 0 || pids[rank] == getpid()) continue;
    const auto process = static_cast<int>(syscall(SYS_pidfd_open, pids[rank], 0));
    if (process >= 0 || errno == ESRCH) peers_.push_back({static_cast<int>(rank), FileDescriptor(process)});
  }
  if (peers_.empty()) return;
  stop_ = FileDescriptor(eventfd(0, EFD_CLOEXEC));
  MINISGL_CHECK(stop_, "eventfd: ", std::strerror(errno));
  thread_ = start_quiet_thread([this] { run(); });
  pthread_setname_np(thread_.native_handle(), "minisgl-watch");
}

PeerWatch::~PeerWatch() {
  if (!thread_.joinable()) return;
  const std::uint64_t one = 1;
  if (write(stop_.get(), &one, sizeof(one)) == sizeof(one)) thread_.join();
}

void PeerWatch::run() {
  std::vector<pollfd> polled = {{stop_.get(), POLLIN, 0}};
  std::vector<int> ranks = {-1};
  for (const Peer& peer : peers_) {
    if (!peer.process) {
      on_death_(peer.rank);
      continue;
    }
    polled.push_back({peer.process.get(), POLLIN, 0});
    ranks.push_back(peer.rank);
  }
  while (true) {
    if (poll(polled.data(), polled.size(), -1) < 0) continue;  // EINTR
    if (polled[0].revents != 0) return;
    for (std::size_t i = 1; i < polled.size(); ++i) {
      if (polled[i].revents == 0) continue;
      on_death_(ranks[i]);
      polled[i].fd = -1;  // poll() passes it over from now on
    }
  }
}

}  // namespace minisgl
