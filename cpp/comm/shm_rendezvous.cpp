// The first rank to come binds an abstract socket and serves; the others connect. One message each way.
#include "comm/shm_rendezvous.h"

#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "comm/communicator.h"
#include "comm/deadline.h"
#include "core/error.h"

namespace minisgl {
namespace {

constexpr std::uint32_t kMagic = 0x6d736731;  // names this version of the messages
constexpr int kMaxRanks = 64;
// This many connections may have said nothing. One more, and the oldest is closed: a rank speaks at once.
constexpr std::size_t kMostCallers = 256;

struct Hello {
  std::uint32_t magic;
  std::int32_t rank;
  std::int32_t size;
};

enum class Outcome : std::int32_t { complete, misfit, missing };

struct Answer {
  std::uint32_t magic;
  Outcome outcome;
  std::int32_t culprit;                      // a rank or -1
  std::array<std::int32_t, kMaxRanks> pids;  // where complete
  char reason[256];                          // elsewhere
};

struct Request {
  const std::string& name;
  int rank;
  int size;
  std::size_t num_bytes;
  std::chrono::milliseconds timeout;
  Deadline deadline;
};

[[noreturn]] void throw_system_error(const char* call) {
  throw InputError(concat("ranks can't share memory: ", call, ": ", std::strerror(errno)));
}

[[noreturn]] void throw_answer(const Answer& answer) {
  if (answer.outcome == Outcome::misfit) throw InputError(answer.reason);
  throw RankFailure(answer.culprit, answer.reason);
}

sockaddr_un address_of(const std::string& name, socklen_t& length) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = "minisgl-" + name;  // behind a zero byte: abstract
  std::memcpy(address.sun_path + 1, path.data(), path.size());
  length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + path.size());
  return address;
}

bool is_same_user(int socket) {
  ucred peer{};
  socklen_t length = sizeof(peer);
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == geteuid();
}

pid_t process_behind(int socket) {
  ucred peer{};
  socklen_t length = sizeof(peer);
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 ? peer.pid : -1;
}

// A message of that size, or false: the deadline has passed, the peer has ended, or it sent something else.
template <typename Message>
bool receive(int socket, Deadline deadline, Message& message, FileDescriptor* passed = nullptr) {
  pollfd polled{socket, POLLIN, 0};
  int ready;
  do {
    ready = poll(&polled, 1, milliseconds_until(deadline));
  } while (ready < 0 && errno == EINTR);
  if (ready <= 0) return false;
  iovec part{&message, sizeof(message)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  const ssize_t num_bytes = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
  const cmsghdr* extra = num_bytes < 0 ? nullptr : CMSG_FIRSTHDR(&header);
  if (extra && extra->cmsg_level == SOL_SOCKET && extra->cmsg_type == SCM_RIGHTS) {
    int fd;
    std::memcpy(&fd, CMSG_DATA(extra), sizeof(fd));
    FileDescriptor owned(fd);
    if (passed) *passed = std::move(owned);
  }
  return num_bytes == sizeof(message) && message.magic == kMagic;
}

// The peer may have ended meanwhile; that shows elsewhere.
void send_answer(int socket, const Answer& answer, int memory) {
  iovec part{const_cast<Answer*>(&answer), sizeof(answer)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (memory >= 0) {
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    cmsghdr* extra = CMSG_FIRSTHDR(&header);
    extra->cmsg_level = SOL_SOCKET;
    extra->cmsg_type = SCM_RIGHTS;
    extra->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(extra), &memory, sizeof(memory));
  }
  sendmsg(socket, &header, MSG_NOSIGNAL);
}

// The rank that came first.
class Host {
 public:
  Host(const Request& request, FileDescriptor listener)
      : request_(request),
        listener_(std::move(listener)),
        sockets_(static_cast<std::size_t>(request.size)),
        pids_(static_cast<std::size_t>(request.size), 0) {
    pids_[static_cast<std::size_t>(request.rank)] = getpid();
  }

  SharedGroup gather() {
    FileDescriptor memory(memfd_create("minisgl-ranks", MFD_CLOEXEC));
    if (!memory) throw_system_error("memfd_create");
    if (ftruncate(memory.get(), static_cast<off_t>(request_.num_bytes)) != 0) throw_system_error("ftruncate");
    while (!missing().empty()) admit_next();
    Answer answer{.magic = kMagic, .outcome = Outcome::complete, .culprit = -1, .pids = {}, .reason = ""};
    std::copy(pids_.begin(), pids_.end(), answer.pids.begin());
    for (const FileDescriptor& socket : sockets_)
      if (socket) send_answer(socket.get(), answer, memory.get());
    return {std::move(memory), pids_};
  }

 private:
  std::vector<int> missing() const {
    std::vector<int> ranks;
    for (int rank = 0; rank < request_.size; ++rank)
      if (pids_[static_cast<std::size_t>(rank)] == 0) ranks.push_back(rank);
    return ranks;
  }

  // Waits for a rank to come, and for one that came to end. Connections are heard side by side: one that says nothing
  // keeps no rank waiting.
  void admit_next() {
    std::vector<pollfd> polled = {{listener_.get(), POLLIN, 0}};
    for (const FileDescriptor& socket : sockets_) polled.push_back({socket.get(), POLLIN, 0});
    for (const FileDescriptor& socket : callers_) polled.push_back({socket.get(), POLLIN, 0});
    const int ready = poll(polled.data(), polled.size(), milliseconds_until(request_.deadline));
    if (ready < 0 && errno != EINTR) throw_system_error("poll");
    if (ready < 0) return;
    if (ready == 0 || has_passed(request_.deadline)) {
      std::string names;
      for (const int rank : missing())
        names += concat(!names.empty() ? ", " : missing().size() > 1 ? "ranks " : "rank ", rank);
      refuse_all(Outcome::missing, missing().front(),
                 concat(names, " didn't come within ", seconds_text(request_.timeout)));
    }
    for (int rank = 0; rank < request_.size; ++rank)
      if (polled[static_cast<std::size_t>(rank) + 1].revents != 0)
        refuse_all(Outcome::missing, rank, concat("rank ", rank, " ended before all ranks had come"));
    std::vector<FileDescriptor> silent;
    for (std::size_t i = 0; i < callers_.size(); ++i) {
      if (polled[1 + sockets_.size() + i].revents == 0) {
        silent.push_back(std::move(callers_[i]));
        continue;
      }
      Hello hello;
      if (receive(callers_[i].get(), deadline_in(std::chrono::milliseconds(0)), hello))
        admit(std::move(callers_[i]), hello);
    }
    callers_ = std::move(silent);
    if (polled[0].revents == 0) return;
    FileDescriptor socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket || !is_same_user(socket.get())) return;
    if (callers_.size() == kMostCallers) callers_.erase(callers_.begin());
    callers_.push_back(std::move(socket));
  }

  void admit(FileDescriptor socket, const Hello& hello) {
    const pid_t pid = process_behind(socket.get());
    const bool in_range = hello.rank >= 0 && hello.rank < request_.size;
    const bool fits = hello.size == request_.size && in_range && pids_[static_cast<std::size_t>(hello.rank)] == 0;
    const std::size_t place = fits ? static_cast<std::size_t>(hello.rank) : sockets_.size();
    if (!fits) sockets_.emplace_back();
    sockets_[place] = std::move(socket);
    if (!fits)
      refuse_all(Outcome::misfit, -1,
                 concat("ranks of group ", request_.name, " don't fit together: rank ", hello.rank, " of ", hello.size,
                        " came to a group of ", request_.size, in_range ? " that has that rank" : ""));
    pids_[place] = pid;
  }

  [[noreturn]] void refuse_all(Outcome outcome, int culprit, const std::string& reason) {
    Answer answer{.magic = kMagic, .outcome = outcome, .culprit = culprit, .pids = {}, .reason = ""};
    reason.copy(answer.reason, sizeof(answer.reason) - 1);
    for (const FileDescriptor& socket : sockets_)
      if (socket) send_answer(socket.get(), answer, -1);
    throw_answer(answer);
  }

  const Request& request_;
  FileDescriptor listener_;
  std::vector<FileDescriptor> sockets_;  // of the other ranks that have come; behind them one that doesn't fit
  std::vector<pid_t> pids_;              // 0: hasn't come yet
  std::vector<FileDescriptor> callers_;  // that have not said yet who they are, in the order in which they came
};

// A rank that came later waits this much longer than the host, which knows who is missing.
constexpr std::chrono::seconds kGrace{1};

// A rank that came later, connected.
SharedGroup join(const Request& request, const FileDescriptor& socket) {
  if (!is_same_user(socket.get()))
    throw InputError(concat("the group name ", request.name, " is in use by another user of this host"));
  const Hello hello{kMagic, request.rank, request.size};
  Answer answer;
  SharedGroup group;
  if (send(socket.get(), &hello, sizeof(hello), MSG_NOSIGNAL) != sizeof(hello) ||
      !receive(socket.get(), request.deadline + kGrace, answer, &group.memory)) {
    const bool late = has_passed(request.deadline);
    throw RankFailure(-1, late ? concat("not all ", request.size, " ranks came within ", seconds_text(request.timeout))
                               : std::string("the rank that gathers the others ended before all had come"));
  }
  if (answer.outcome != Outcome::complete) throw_answer(answer);
  group.pids.assign(answer.pids.begin(), answer.pids.begin() + request.size);
  return group;
}

}  // namespace

SharedGroup gather_ranks(const std::string& name, int rank, int size, std::size_t num_bytes,
                         std::chrono::milliseconds timeout) {
  if (size > kMaxRanks) throw InputError(concat("a host has at most ", kMaxRanks, " ranks, got ", size));
  if (name.empty() || name.size() > 64)
    throw InputError(concat("a group's name has 1 to 64 characters, got ", name.size()));
  const Request request{name, rank, size, num_bytes, timeout, deadline_in(timeout)};
  socklen_t length;
  const sockaddr_un address = address_of(name, length);
  while (true) {
    FileDescriptor socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (!socket) throw_system_error("socket");
    if (bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) == 0) {
      if (listen(socket.get(), size) != 0) throw_system_error("listen");
      return Host(request, std::move(socket)).gather();
    }
    if (errno != EADDRINUSE) throw_system_error("bind");
    if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) == 0) return join(request, socket);
    // Between the first rank's bind() and its listen(), or after its end.
    if (errno != ECONNREFUSED || has_passed(request.deadline)) throw_system_error("connect");
    sched_yield();
  }
}

}  // namespace minisgl
