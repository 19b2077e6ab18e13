// Finding each other, the first bytes of a connection, and frames with a length before them.
#include "comm/plan_tcp.h"

#include <netinet/tcp.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "comm/constant_time.h"
#include "comm/greetings.h"
#include "comm/tcp_socket.h"
#include "core/error.h"

namespace minisgl {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds greeting_limit{2000};  // for the first bytes of a connection, and for their answer
constexpr milliseconds retry_interval{100};   // between two attempts to connect

struct Greeting {
  char magic[8] = {'m', 's', 'g', 'l', 'p', 'l', 'a', 'n'};
  std::uint32_t rank = 0;
  PlanKey key = {};
};

// An error instead of silence when the other host is gone.
void watch(const FileDescriptor& socket, milliseconds stall_limit) {
  const int quarter = std::max(1, static_cast<int>(stall_limit.count() / 4000));  // seconds
  set_option(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(stall_limit.count()));
  set_option(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, quarter);
  set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, quarter);
  set_option(socket, IPPROTO_TCP, TCP_KEEPCNT, 3);
}

std::string place_of(const PlanTcpOptions& options) {
  return concat(options.host, " port ", options.port);
}

SocketAddress address_of(const PlanTcpOptions& options) {
  return resolve_address(options.host, std::to_string(options.port));
}

std::string why_gone() {
  if (errno == 0) return "closed its connection";
  return concat("is out of reach: ", std::strerror(errno));
}

class TcpSender final : public PlanSender {
 public:
  TcpSender(const PlanTcpOptions& options, const std::vector<RemoteRank>& ranks) : options_(options) {
    Greetings greetings(listen_at(address_of(options), place_of(options)), sizeof(Greeting), greeting_limit);
    const Deadline deadline = deadline_in(options.connect_limit);
    std::vector<RemoteRank> missing = ranks;
    while (!missing.empty()) {
      std::optional<Greetings::Caller> caller = greetings.next(deadline);
      if (!caller) throw RankFailure(missing.front().rank, describe(missing));
      admit(std::move(*caller), missing);
    }
  }

  void send(std::span<const std::byte> frame) override {
    MINISGL_CHECK(frame.size() <= max_plan_frame_bytes, "a frame of ", frame.size(), " bytes");
    auto length = static_cast<std::uint32_t>(frame.size());
    for (const Connection& connection : connections_) {
      const Deadline deadline = deadline_in(options_.stall_limit);
      if (!send_all(connection.socket, bytes_of(length), deadline, MSG_MORE) ||
          !send_all(connection.socket, frame, deadline)) {
        const std::string what =
            errno == EAGAIN ? concat("did not read its step plans for ", limit_text()) : why_gone();
        throw RankFailure(connection.rank, concat("rank ", connection.rank, " ", what));
      }
    }
  }

 private:
  struct Connection {
    int rank;
    FileDescriptor socket;
  };

  // A stranger's connection is closed, and that is all.
  void admit(Greetings::Caller caller, std::vector<RemoteRank>& missing) {
    Greeting greeting;
    std::memcpy(&greeting, caller.bytes.data(), sizeof greeting);
    if (std::memcmp(greeting.magic, Greeting().magic, sizeof greeting.magic) != 0) return;
    const auto rank = std::ranges::find(missing, static_cast<int>(greeting.rank), &RemoteRank::rank);
    if (rank == missing.end() || !equal_in_constant_time(greeting.key, rank->keys.follower)) return;
    Greeting answer{.rank = greeting.rank, .key = rank->keys.primary};
    watch(caller.socket, options_.stall_limit);
    if (!send_all(caller.socket, bytes_of(answer), deadline_in(greeting_limit))) return;
    connections_.push_back({rank->rank, std::move(caller.socket)});
    missing.erase(rank);
  }

  std::string describe(const std::vector<RemoteRank>& missing) const {
    std::string text;
    for (const RemoteRank& rank : missing) text += concat(text.empty() ? "rank " : ", rank ", rank.rank);
    return concat(text, " did not connect to ", place_of(options_), " within ",
                  static_cast<double>(options_.connect_limit.count()) / 1000, " s");
  }

  std::string limit_text() const { return concat(static_cast<double>(options_.stall_limit.count()) / 1000, " s"); }

  const PlanTcpOptions options_;
  std::vector<Connection> connections_;
};

class TcpReceiver final : public PlanReceiver {
 public:
  TcpReceiver(const PlanTcpOptions& options, const RemoteRank& self) {
    const Deadline deadline = deadline_in(options.connect_limit);
    while (!join(options, self)) {
      if (has_passed(deadline)) {
        throw RankFailure(0, concat(refused_ ? "rank 0 turned this rank away at " : "rank 0 can't be reached at ",
                                    place_of(options)));
      }
      std::this_thread::sleep_for(retry_interval);
    }
  }

  std::span<const std::byte> receive() override {
    std::uint32_t length = 0;
    if (!receive_all(connection_, bytes_of(length), kNoDeadline)) fail();
    if (length > max_plan_frame_bytes)
      throw RankFailure(0, concat("the plan channel is damaged: a frame of ", length, " bytes"));
    frame_.resize(length);
    if (!receive_all(connection_, frame_, kNoDeadline)) fail();
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

  // Whether rank 0 was there.
  bool join(const PlanTcpOptions& options, const RemoteRank& self) {
    refused_ = false;
    const Deadline deadline = deadline_in(greeting_limit);
    FileDescriptor connection = try_to_connect(address_of(options), deadline);
    if (!connection) return false;
    watch(connection, options.stall_limit);
    Greeting greeting{.rank = static_cast<std::uint32_t>(self.rank), .key = self.keys.follower}, answer;
    if (!send_all(connection, bytes_of(greeting), deadline) || !receive_all(connection, bytes_of(answer), deadline)) {
      refused_ = errno == 0;  // the connection was closed in order
      return false;
    }
    if (!equal_in_constant_time(answer.key, self.keys.primary))
      throw RankFailure(
          0, concat("authentication failed: the peer at ", place_of(options), " is not rank 0 of this group"));
    connection_ = std::move(connection);
    return true;
  }

  FileDescriptor connection_;
  bool refused_ = false;  // at the last attempt
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
