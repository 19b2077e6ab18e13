// One rank's part of a group: how it finds the other ranks, and what they must agree on before they serve.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/plan_channel.h"
#include "comm/plan_tcp.h"
#include "engine/options.h"
#include "models/model.h"

namespace minisgl {

// Which rank this process is. The first local_size ranks are on rank 0's host, the next on the next.
struct Place {
  int rank = 0, size = 1;
  int local_size = 1;                              // ranks on this host
  int ring_fd = -1;                                // plans on this host; the ranks of rank 0's host have it
  std::string host = {};                           // rank 0's address, where there are several hosts,
  int plan_port = 0;                               // and where it hands out plans
  std::vector<RemoteRank> remotes = {};            // rank 0: ranks of other hosts; a rank of another host: itself
  std::chrono::microseconds spin{0};               // how long a follower watches for a plan before it sleeps
  std::shared_ptr<Communicator> device_comm = {};  // for the device's memory; null for a single rank
  std::shared_ptr<Communicator> host_comm = {};    // for the host's memory; may be the same
  std::chrono::milliseconds step_timeout{30'000};  // limit of a collective once all ranks have loaded
};

// Rank 0's end of the plan channel, and the others'.
PlanSenders open_plan_senders(const Place& place);
std::unique_ptr<PlanReceiver> open_plan_receiver(const Place& place);

// Ranks have loaded, and work in step from here on: collectives wait no longer than a step may take.
void set_running_limit(const Place& place);

// The configuration that all ranks can keep to: the cache is as large as the rank with the least room has it. `asked`
// is what the user gave. Collective over place.host_comm. Throws InputError, the same sentence on every rank, where
// ranks have loaded different models or differ in what must be equal.
EngineConfig agree_on_config(const EngineConfig& own, const EngineOptions& asked, const Model& model,
                             const Place& place);

}  // namespace minisgl
