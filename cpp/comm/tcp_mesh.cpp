// Ranks meet at rank 0, which tells all of them where the others listen; then each connects to those before it.
#include "comm/tcp_mesh.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <thread>
#include <utility>

#include "comm/constant_time.h"
#include "comm/greetings.h"
#include "comm/tcp_socket.h"
#include "core/error.h"

namespace minisgl {
namespace {

constexpr std::uint32_t kMagic = 0x6d736731;   // names this version of the messages
constexpr std::chrono::seconds kHelloTime{2};  // for a stranger to say who it is
constexpr std::chrono::milliseconds kTryAgain{50};

struct Hello {
  std::uint32_t magic;
  std::int32_t rank;
  std::int32_t size;
  std::array<char, 64> secret;
};

SocketAddress resolve(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == text.size())
    throw InputError(concat("an address is host:port, got '", text, "'"));
  std::string host = text.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return resolve_address(host, text.substr(colon + 1));
}

void set_port(SocketAddress& address, std::uint16_t network_order) {
  if (address.storage.ss_family == AF_INET6)
    reinterpret_cast<sockaddr_in6*>(&address.storage)->sin6_port = network_order;
  else
    reinterpret_cast<sockaddr_in*>(&address.storage)->sin_port = network_order;
}

Hello hello_of(const TcpOptions& options) {
  Hello hello{kMagic, options.rank, options.size, {}};
  std::copy(options.secret.begin(), options.secret.end(), hello.secret.begin());
  return hello;
}

// Connects as soon as somebody listens there, and says who this is; the other side answers in kind.
FileDescriptor connect_to(const SocketAddress& address, int rank, const TcpOptions& options, Deadline deadline) {
  Hello own = hello_of(options);
  while (true) {
    FileDescriptor socket = try_to_connect(address, deadline);
    Hello hello;
    if (socket && send_all(socket, bytes_of(own), deadline) && receive_all(socket, bytes_of(hello), deadline)) {
      if (hello.magic == kMagic && hello.rank == rank && hello.size == options.size &&
          equal_in_constant_time(hello.secret, own.secret))
        return socket;
      throw InputError(concat("authentication failed: the peer at the address of rank ", rank,
                              " has another secret, size or release of minisgl"));
    }
    if (has_passed(deadline - kTryAgain))
      throw RankFailure(rank, concat("rank ", rank, " didn't come within ", seconds_text(options.timeout)));
    std::this_thread::sleep_for(kTryAgain);  // TCP can't wait for a listener
  }
}

// Accepts the ranks from `first` on, in whatever order they come.
void accept_ranks(FileDescriptor listener, int first, const TcpOptions& options, Deadline deadline,
                  std::vector<FileDescriptor>& sockets) {
  Hello own = hello_of(options);
  Greetings greetings(std::move(listener), sizeof(Hello), kHelloTime);
  const auto is_missing = [](const FileDescriptor& socket) { return !socket; };
  while (true) {
    const auto missing = std::find_if(sockets.begin() + first, sockets.end(), is_missing);
    if (missing == sockets.end()) return;
    std::optional<Greetings::Caller> caller = greetings.next(deadline);
    if (!caller) {
      const auto rank = static_cast<int>(missing - sockets.begin());
      throw RankFailure(rank, concat("rank ", rank, " didn't come within ", seconds_text(options.timeout)));
    }
    Hello hello;
    std::memcpy(&hello, caller->bytes.data(), sizeof(hello));
    if (hello.magic != kMagic || !equal_in_constant_time(hello.secret, own.secret)) continue;  // a stranger
    const bool fits = hello.size == options.size && hello.rank >= first && hello.rank < options.size;
    if (!fits || sockets[static_cast<std::size_t>(hello.rank)])
      throw InputError(concat("rank ", hello.rank, " of ", hello.size, " came to a group of ", options.size,
                              fits ? " that has that rank" : ""));
    if (send_all(caller->socket, bytes_of(own), std::min(deadline, deadline_in(kHelloTime))))
      sockets[static_cast<std::size_t>(hello.rank)] = std::move(caller->socket);
  }
}

}  // namespace

TcpMesh::TcpMesh(const TcpOptions& options)
    : options_(options), limit_{options.timeout}, sockets_(static_cast<std::size_t>(options.size)) {
  check_rank(options.rank, options.size);
  if (options.secret.size() < 8 || options.secret.size() > 64)
    throw InputError(concat("a group's secret has 8 to 64 bytes, got ", options.secret.size()));
  if (options.size == 1) return;
  const Deadline deadline = deadline_in(options.timeout);
  const SocketAddress meeting_place = resolve(options.address);
  std::vector<SocketAddress> addresses(static_cast<std::size_t>(options.size));  // where ranks listen, by rank
  FileDescriptor listener;
  if (options.rank == 0) {
    listener = listen_at(meeting_place, options.address);
    accept_ranks(std::move(listener), 1, options, deadline, sockets_);
  } else {
    sockets_[0] = connect_to(meeting_place, 0, options, deadline);
    SocketAddress own = own_address(sockets_[0]);
    set_port(own, 0);  // any
    listener = listen_at(own, "the address that rank 0 is reached by");
    addresses[static_cast<std::size_t>(options.rank)] = own_address(listener);
  }
  // To rank 0 and back to all.
  const auto as_bytes = [](SocketAddress& address) { return reinterpret_cast<std::byte*>(&address); };
  std::vector<TcpMessages> messages(sockets_.size());
  SocketAddress& own = addresses[static_cast<std::size_t>(options.rank)];
  for (std::size_t rank = 1; options.rank == 0 && rank < sockets_.size(); ++rank)
    messages[rank] = {nullptr, as_bytes(addresses[rank]), 0, sizeof(SocketAddress)};
  if (options.rank != 0) messages[0] = {as_bytes(own), nullptr, sizeof(SocketAddress), 0};
  exchange(messages);
  const std::size_t num_bytes = addresses.size() * sizeof(SocketAddress);
  for (std::size_t rank = 1; options.rank == 0 && rank < sockets_.size(); ++rank)
    messages[rank] = {as_bytes(addresses[0]), nullptr, num_bytes, 0};
  if (options.rank != 0) messages[0] = {nullptr, as_bytes(addresses[0]), 0, num_bytes};
  exchange(messages);
  if (options.rank == 0) return;
  for (int rank = 1; rank < options.rank; ++rank)
    sockets_[static_cast<std::size_t>(rank)] =
        connect_to(addresses[static_cast<std::size_t>(rank)], rank, options, deadline);
  accept_ranks(std::move(listener), options.rank + 1, options, deadline, sockets_);
}

void TcpMesh::exchange(std::vector<TcpMessages> messages) {
  if (!failure_.empty()) throw RankFailure(culprit_, failure_);
  const Deadline deadline = deadline_in(limit_.time);
  std::vector<pollfd> polled(sockets_.size(), pollfd{-1, 0, 0});
  while (true) {
    int waiting_for = -1;
    for (std::size_t rank = 0; rank < sockets_.size(); ++rank) {
      TcpMessages& message = messages[rank];
      if (!sockets_[rank]) continue;
      const int fd = sockets_[rank].get();
      while (message.num_send > 0) {
        const ssize_t sent = send(fd, message.send, message.num_send, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EAGAIN) break;
        if (sent < 0 && errno != EINTR) fail(static_cast<int>(rank), "has ended its connection");
        const auto done = static_cast<std::size_t>(std::max<ssize_t>(sent, 0));
        message.send += done;
        message.num_send -= done;
      }
      while (message.num_receive > 0) {
        const ssize_t received = recv(fd, message.receive, message.num_receive, MSG_DONTWAIT);
        if (received < 0 && errno == EAGAIN) break;
        if (received == 0 || (received < 0 && errno != EINTR)) fail(static_cast<int>(rank), "has ended its connection");
        const auto done = static_cast<std::size_t>(std::max<ssize_t>(received, 0));
        message.receive += done;
        message.num_receive -= done;
      }
      const auto events = (message.num_send > 0 ? POLLOUT : 0) | (message.num_receive > 0 ? POLLIN : 0);
      polled[rank] = {events != 0 ? fd : -1, static_cast<short>(events), 0};
      if (events != 0 && waiting_for < 0) waiting_for = static_cast<int>(rank);
    }
    if (waiting_for < 0) return;
    const int ready = poll(polled.data(), polled.size(), milliseconds_until(deadline));
    if (ready == 0) fail(waiting_for, concat("didn't come to a collective within ", text_of(limit_)));
  }
}

void TcpMesh::fail(int rank, const std::string& message) {
  culprit_ = rank;
  failure_ = concat("rank ", rank, " ", message);
  throw RankFailure(culprit_, failure_);
}

}  // namespace minisgl
