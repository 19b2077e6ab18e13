// TCP connections with time limits: what the plan channel between hosts and the sums over TCP share.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstddef>
#include <span>
#include <string>

#include "comm/deadline.h"
#include "comm/file_descriptor.h"

namespace minisgl {

struct SocketAddress {
  sockaddr_storage storage;
  socklen_t length;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

void set_option(const FileDescriptor& socket, int level, int name, int value);

// Throws InputError for a name that can't be resolved.
SocketAddress resolve_address(const std::string& host, const std::string& port);
SocketAddress own_address(const FileDescriptor& socket);

// Listens there and nowhere else. InputError, with the address as `name`, where that isn't possible.
FileDescriptor listen_at(const SocketAddress& address, const std::string& name);
// The next connection, or none where the deadline has passed or the peer is gone again.
FileDescriptor accept_connection(const FileDescriptor& listener, Deadline deadline);
// A connection, or none where no process listens there or answers before the deadline.
FileDescriptor try_to_connect(const SocketAddress& address, Deadline deadline);

// Whether one of the events is there before the deadline.
bool wait_for(const FileDescriptor& socket, short events, Deadline deadline);

// All of the bytes, or false; errno says why: EAGAIN for the deadline, 0 for a connection that was closed in order.
bool send_all(const FileDescriptor& socket, std::span<const std::byte> bytes, Deadline deadline, int flags = 0);
bool receive_all(const FileDescriptor& socket, std::span<std::byte> bytes, Deadline deadline);

// A message of fixed size as bytes.
template <typename Message>
std::span<std::byte> bytes_of(Message& message) {
  return std::as_writable_bytes(std::span(&message, 1));
}

}  // namespace minisgl
