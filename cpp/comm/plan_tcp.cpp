// Finding each other, the first bytes of a connection, and frames with a length before them.
#include "comm/plan_tcp.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "comm/constant_time.h"
#include "comm/file_descriptor.h"
#include "core/error.h"

namespace minisgl {
namespace {

using SteadyClock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds greeting_limit{2000};  // for the first bytes of a connection: a stranger may send none
constexpr milliseconds retry_interval{100};   // between two attempts to connect

struct Greeting {
  char magic[8] = {'m', 's', 'g', 'l', 'p', 'l', 'a', 'n'};
  std::uint32_t rank = 0;
  PlanKey key = {};
};

milliseconds left_until(SteadyClock::time_point deadline) {
  return std::max(milliseconds(0), std::chrono::duration_cast<milliseconds>(deadline - SteadyClock::now()));
}

void set_option(int fd, int level, int name, int value) {
  setsockopt(fd, level, name, &value, sizeof value);
}

void set_time_limit(int fd, int name, milliseconds limit) {
  const timeval time{.tv_sec = limit.count() / 1000, .tv_usec = limit.count() % 1000 * 1000};
  setsockopt(fd, SOL_SOCKET, name, &time, sizeof time);
}

// No waiting for more to send, and an error instead of silence when the other host is gone.
void prepare(int fd, milliseconds stall_limit) {
  const int seconds = std::max(1, static_cast<int>(stall_limit.count() / 1000));
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(stall_limit.count()));
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, std::max(1, seconds / 4));
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, std::max(1, seconds / 4));
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
}

struct FreeAddresses {
  void operator()(addrinfo* addresses) const { freeaddrinfo(addresses); }
};
using Addresses = std::unique_ptr<addrinfo, FreeAddresses>;

Addresses resolve(const PlanTcpOptions& options, int flags) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_flags = flags | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  const int error = getaddrinfo(options.host.c_str(), std::to_string(options.port).c_str(), &hints, &found);
  if (error != 0) throw InputError(concat("the address '", options.host, "' is not known: ", gai_strerror(error)));
  return Addresses(found);
}

FileDescriptor open_socket(const addrinfo& address) {
  return FileDescriptor(socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC, address.ai_protocol));
}

FileDescriptor listen_at(const PlanTcpOptions& options) {
  const Addresses addresses = resolve(options, AI_PASSIVE);
  FileDescriptor listener = open_socket(*addresses);
  // A connection may be gone again between poll() and accept().
  fcntl(listener.get(), F_SETFL, fcntl(listener.get(), F_GETFL) | O_NONBLOCK);
  set_option(listener.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (!listener || bind(listener.get(), addresses->ai_addr, addresses->ai_addrlen) != 0 ||
      listen(listener.get(), 64) != 0) {
    throw InputError(concat("can't listen at ", options.host, " port ", options.port, ": ", std::strerror(errno)));
  }
  return listener;
}

bool receive_all(int fd, std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = recv(fd, bytes.data(), bytes.size(), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count == 0) errno = 0;  // an orderly end
    if (count <= 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
  return true;
}

bool send_all(int fd, std::span<const std::byte> bytes, int flags = 0) {
  while (!bytes.empty()) {
    const ssize_t count = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | flags);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
  return true;
}

template <typename T>
std::span<std::byte> bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

std::string why_gone() {
  if (errno == 0) return "closed its connection";
  if (errno == EAGAIN || errno == EWOULDBLOCK) return "took no plan for too long";
  return concat("is out of reach: ", std::strerror(errno));
}

class TcpSender final : public PlanSender {
 public:
  TcpSender(const PlanTcpOptions& options, const std::vector<RemoteRank>& ranks) : options_(options) {
    const FileDescriptor listener = listen_at(options);
    const auto deadline = SteadyClock::now() + options.connect_limit;
    std::vector<RemoteRank> missing = ranks;
    while (!missing.empty()) {
      pollfd event{.fd = listener.get(), .events = POLLIN, .revents = 0};
      const int ready = poll(&event, 1, static_cast<int>(left_until(deadline).count()));
      if (ready == 0) throw RankFailure(missing.front().rank, describe(missing));
      if (ready < 0) continue;  // a signal
      FileDescriptor connection(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (connection) admit(std::move(connection), missing);
    }
  }

  void send(std::span<const std::byte> frame) override {
    MINISGL_CHECK(frame.size() <= max_plan_frame_bytes, "a frame of ", frame.size(), " bytes");
    auto length = static_cast<std::uint32_t>(frame.size());
    for (const Connection& connection : connections_) {
      if (!send_all(connection.fd.get(), bytes_of(length), MSG_MORE) || !send_all(connection.fd.get(), frame)) {
        throw RankFailure(connection.rank, concat("rank ", connection.rank, " ", why_gone()));
      }
    }
  }

 private:
  struct Connection {
    int rank;
    FileDescriptor fd;
  };

  // A stranger's connection is closed, and that is all.
  void admit(FileDescriptor connection, std::vector<RemoteRank>& missing) {
    const int fd = connection.get();
    prepare(fd, options_.stall_limit);
    set_time_limit(fd, SO_RCVTIMEO, greeting_limit);
    Greeting greeting;
    if (!receive_all(fd, bytes_of(greeting)) ||
        std::memcmp(greeting.magic, Greeting().magic, sizeof greeting.magic) != 0) {
      return;
    }
    const auto rank = std::ranges::find(missing, static_cast<int>(greeting.rank), &RemoteRank::rank);
    if (rank == missing.end() || !equal_in_constant_time(greeting.key, rank->keys.follower)) return;
    Greeting answer{.rank = greeting.rank, .key = rank->keys.primary};
    if (!send_all(fd, bytes_of(answer))) return;
    set_time_limit(fd, SO_SNDTIMEO, options_.stall_limit);
    connections_.push_back({rank->rank, std::move(connection)});
    missing.erase(rank);
  }

  std::string describe(const std::vector<RemoteRank>& missing) const {
    std::string text;
    for (const RemoteRank& rank : missing) text += concat(text.empty() ? "rank " : ", rank ", rank.rank);
    return concat(text, " did not connect to ", options_.host, " port ", options_.port, " within ",
                  static_cast<double>(options_.connect_limit.count()) / 1000, " s");
  }

  const PlanTcpOptions options_;
  std::vector<Connection> connections_;
};

class TcpReceiver final : public PlanReceiver {
 public:
  TcpReceiver(const PlanTcpOptions& options, const RemoteRank& self) {
    const auto deadline = SteadyClock::now() + options.connect_limit;
    while (!try_to_connect(options, self)) {
      if (left_until(deadline).count() == 0) {
        throw RankFailure(0, concat("rank 0 can't be reached at ", options.host, " port ", options.port));
      }
      std::this_thread::sleep_for(retry_interval);
    }
  }

  std::span<const std::byte> receive() override {
    std::uint32_t length = 0;
    if (!receive_all(connection_.get(), bytes_of(length))) fail();
    if (length > max_plan_frame_bytes) throw RankFailure(0, concat("rank 0 sent a frame of ", length, " bytes"));
    frame_.resize(length);
    if (!receive_all(connection_.get(), frame_)) fail();
    return frame_;
  }

  void interrupt() override {
    interrupted_ = true;
    shutdown(connection_.get(), SHUT_RDWR);
  }

 private:
  [[noreturn]] void fail() const {
    if (interrupted_) throw ChannelInterrupted();
    throw RankFailure(0, concat("rank 0 ", why_gone()));
  }

  bool try_to_connect(const PlanTcpOptions& options, const RemoteRank& self) {
    const Addresses addresses = resolve(options, 0);
    FileDescriptor connection = open_socket(*addresses);
    if (!connection) return false;
    prepare(connection.get(), options.stall_limit);
    set_time_limit(connection.get(), SO_SNDTIMEO, greeting_limit);  // connect() too
    set_time_limit(connection.get(), SO_RCVTIMEO, greeting_limit);
    if (connect(connection.get(), addresses->ai_addr, addresses->ai_addrlen) != 0) return false;
    Greeting greeting{.rank = static_cast<std::uint32_t>(self.rank), .key = self.keys.follower}, answer;
    if (!send_all(connection.get(), bytes_of(greeting)) || !receive_all(connection.get(), bytes_of(answer)))
      return false;
    if (!equal_in_constant_time(answer.key, self.keys.primary))
      throw RankFailure(0, "who answers at rank 0's address is not rank 0");
    set_time_limit(connection.get(), SO_RCVTIMEO, milliseconds(0));
    connection_ = std::move(connection);
    return true;
  }

  FileDescriptor connection_;
  std::atomic<bool> interrupted_ = false;
  std::vector<std::byte> frame_;
};

}  // namespace

std::unique_ptr<PlanSender> accept_plan_readers(const PlanTcpOptions& options, const std::vector<RemoteRank>& ranks) {
  return std::make_unique<TcpSender>(options, ranks);
}

std::unique_ptr<PlanReceiver> connect_to_plans(const PlanTcpOptions& options, const RemoteRank& self) {
  return std::make_unique<TcpReceiver>(options, self);
}

}  // namespace minisgl
