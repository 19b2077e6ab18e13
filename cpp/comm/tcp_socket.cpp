// Sockets block, so that receiving without a deadline is one call; calls with one don't, and wait beside it.
#include "comm/tcp_socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace minisgl {
namespace {

FileDescriptor open_socket(const SocketAddress& address) {
  FileDescriptor socket(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) throw InputError(concat("a TCP socket can't be opened: ", std::strerror(errno)));
  return socket;
}

// `call` takes or fills a first part of what is left of the bytes.
template <typename Byte, typename Call>
bool transfer(const FileDescriptor& socket, std::span<Byte> bytes, short event, Deadline deadline, const Call& call) {
  while (!bytes.empty()) {
    const ssize_t count = call(bytes);
    if (count > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(count));
    } else if (count == 0) {
      errno = 0;
      return false;
    } else if (errno == EAGAIN) {
      if (wait_for(socket, event, deadline)) continue;
      errno = EAGAIN;
      return false;
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

}  // namespace

void set_option(const FileDescriptor& socket, int level, int name, int value) {
  setsockopt(socket.get(), level, name, &value, sizeof(value));
}

SocketAddress resolve_address(const std::string& host, const std::string& port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  const int error = getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
  if (error != 0) throw InputError(concat("the address '", host, "' port '", port, "': ", gai_strerror(error)));
  SocketAddress address{};
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.length = found->ai_addrlen;
  freeaddrinfo(found);
  return address;
}

SocketAddress own_address(const FileDescriptor& socket) {
  SocketAddress address{};
  address.length = sizeof(address.storage);
  getsockname(socket.get(), address.get(), &address.length);
  return address;
}

FileDescriptor listen_at(const SocketAddress& address, const std::string& name) {
  FileDescriptor socket = open_socket(address);
  set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);
  if (bind(socket.get(), address.get(), address.length) != 0 || listen(socket.get(), SOMAXCONN) != 0)
    throw InputError(concat("can't listen at ", name, ": ", std::strerror(errno)));
  return socket;
}

FileDescriptor accept_connection(const FileDescriptor& listener, Deadline deadline) {
  if (!wait_for(listener, POLLIN, deadline)) return {};
  FileDescriptor socket(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (socket) set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  return socket;
}

FileDescriptor try_to_connect(const SocketAddress& address, Deadline deadline) {
  FileDescriptor socket = open_socket(address);
  int error = connect(socket.get(), address.get(), address.length) == 0 ? 0 : errno;
  if (error == EINPROGRESS) {
    socklen_t length = sizeof(error);
    error = ETIMEDOUT;
    if (wait_for(socket, POLLOUT, deadline)) getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &length);
  }
  if (error != 0) return {};
  set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  fcntl(socket.get(), F_SETFL, fcntl(socket.get(), F_GETFL) & ~O_NONBLOCK);
  return socket;
}

bool wait_for(const FileDescriptor& socket, short events, Deadline deadline) {
  pollfd polled{socket.get(), events, 0};
  while (true) {
    const int ready = poll(&polled, 1, milliseconds_until(deadline));
    if (ready > 0) return true;
    if (ready == 0 && has_passed(deadline)) return false;
  }
}

bool send_all(const FileDescriptor& socket, std::span<const std::byte> bytes, Deadline deadline, int flags) {
  return transfer(socket, bytes, POLLOUT, deadline, [&](auto rest) {
    return send(socket.get(), rest.data(), rest.size(), MSG_NOSIGNAL | MSG_DONTWAIT | flags);
  });
}

bool receive_all(const FileDescriptor& socket, std::span<std::byte> bytes, Deadline deadline) {
  const int flags = deadline == kNoDeadline ? 0 : MSG_DONTWAIT;
  return transfer(socket, bytes, POLLIN, deadline,
                  [&](auto rest) { return recv(socket.get(), rest.data(), rest.size(), flags); });
}

}  // namespace minisgl
