// The plan channel between hosts: a TCP connection from each rank of another host to rank 0.
//
// Both ends prove who they are with a key that was agreed on for this start and this rank (a connection's first bytes),
// so that no stranger who reaches the port gets or gives plans. Nothing is encrypted: the network is trusted with what
// the ranks compute.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "comm/plan_channel.h"

namespace minisgl {

using PlanKey = std::array<std::byte, 32>;

// What one rank says first, and what it must hear. Random bytes, good for one connection.
struct PlanKeys {
  PlanKey follower, primary;
};

struct PlanTcpOptions {
  std::string host;  // rank 0's address; it listens there and nowhere else
  int port = 0;
  std::chrono::milliseconds connect_limit{60000};  // until the ranks have found each other
  std::chrono::milliseconds stall_limit{plan_stall_limit};
};

struct RemoteRank {
  int rank;
  PlanKeys keys;
};

// Listens until every one of the ranks has come. RankFailure names those that did not.
std::unique_ptr<PlanSender> accept_plan_readers(const PlanTcpOptions& options, const std::vector<RemoteRank>& ranks);
// Connects to rank 0, which may come later.
std::unique_ptr<PlanReceiver> connect_to_plans(const PlanTcpOptions& options, const RemoteRank& self);

}  // namespace minisgl
