// Chooses the channel by where the ranks are.
#include "engine/group.h"

#include <algorithm>
#include <array>
#include <cstddef>

#include "comm/plan_ring.h"
#include "core/error.h"

namespace minisgl {
namespace {

// Until all ranks have come, at their own pace. Whoever started them ends them as soon as one is dead or stuck, so this
// only bounds what nobody watches.
constexpr std::chrono::minutes patience{30};

PlanTcpOptions tcp_options(const Place& place) {
  return {.host = place.host, .port = place.plan_port, .connect_limit = patience};
}

PlanRingOptions ring_options(const Place& place) {
  return {.size = place.local_size, .spin = place.spin};
}

}  // namespace

PlanSenders open_plan_senders(const Place& place) {
  PlanSenders senders;
  if (place.local_size > 1) senders.push_back(open_ring_sender(place.ring_fd, ring_options(place)));
  if (!place.remotes.empty()) senders.push_back(accept_plan_readers(tcp_options(place), place.remotes));
  return senders;
}

std::unique_ptr<PlanReceiver> open_plan_receiver(const Place& place) {
  if (place.remotes.empty()) return open_ring_receiver(place.ring_fd, place.rank, ring_options(place));
  return connect_to_plans(tcp_options(place), place.remotes.front());
}

void set_running_limit(const Place& place) {
  for (const auto& comm : {place.device_comm, place.host_comm}) {
    if (comm) comm->set_time_limit({place.step_timeout, "--step-timeout"});
  }
}

EngineConfig agree_on_config(const EngineConfig& own, const EngineOptions& asked, const ModelSpec& spec,
                             Communicator& host) {
  // What must be equal, and the pages last.
  const std::array<std::int64_t, 13> mine{
      spec.vocab_size,   spec.hidden_size,     spec.num_layers,        spec.num_heads,
      spec.num_kv_heads, spec.head_dim,        spec.intermediate_size, spec.max_position,
      own.page_size,     own.max_batch_tokens, own.max_running,        static_cast<std::int64_t>(own.kv_dtype),
      own.num_pages};
  std::vector<std::array<std::int64_t, mine.size()>> all(static_cast<std::size_t>(host.size()));
  host.all_gather(mine.data(), all.data(), sizeof mine, 0);
  EngineConfig agreed = own;
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (!std::equal(mine.begin(), mine.end() - 1, all[rank].begin())) {
      throw InputError(concat("rank ", rank, " has another model or another device than rank ", host.rank(),
                              ": every host must be given the same"));
    }
    agreed.num_pages = std::min(agreed.num_pages, all[rank].back());
  }
  const std::int64_t cache_tokens = agreed.num_pages * agreed.page_size;
  if (agreed.max_model_len > cache_tokens && asked.max_model_len > 0) {
    throw InputError(concat("a rank has memory for a KV cache of ", cache_tokens, " tokens only: --max-model-len ",
                            asked.max_model_len, " is more than that"));
  }
  agreed.max_model_len = std::min(agreed.max_model_len, cache_tokens);
  return agreed;
}

}  // namespace minisgl
