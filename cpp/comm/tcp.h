// Collectives between ranks on several hosts, over TCP.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "comm/communicator.h"

namespace minisgl {

struct TcpOptions {
  std::string address;  // "host:port" (IPv6: "[host]:port") that rank 0 listens on, as every rank can reach it
  std::string secret;   // 8 to 64 bytes that the ranks alone know
  int rank = 0;
  int size = 1;
  // How long a rank waits for the others at the start, and in a collective until set_time_limit().
  std::chrono::milliseconds timeout{30'000};
};

// Waits until every rank has called it. Every rank connects to every other and listens until then, on the address by
// which it reaches rank 0 and on no other. Who doesn't know the secret is turned away. The secret and the data cross
// the network as they are: it has to be a private one. Throws RankFailure where a rank doesn't come, InputError for an
// address that can't be used.
std::unique_ptr<Communicator> make_tcp_communicator(const TcpOptions& options);

}  // namespace minisgl
