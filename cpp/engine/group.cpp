// Chooses the channel by where the ranks are.
#include "engine/group.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <span>

#include "comm/plan_ring.h"
#include "core/error.h"

namespace minisgl {
namespace {

// How long a rank waits until all have come, each at its own pace. The process that started them ends them all as soon
// as one is dead or stuck, so this only bounds a wait that is not watched.
constexpr std::chrono::minutes patience{30};

PlanTcpOptions tcp_options(const Place& place) {
  return {.host = place.host, .port = place.plan_port, .connect_limit = patience};
}

PlanRingOptions ring_options(const Place& place) {
  return {.size = place.local_size, .spin = place.spin};
}

// A number that all ranks must have in common, and what to do where they don't.
struct Fact {
  const char* name;
  std::int64_t value;
  const char* advice;
};

constexpr const char* kSameModel = "every host needs the same --model and --revision";
constexpr const char* kSameDevice = "every host needs the same kind of device";
constexpr const char* kFingerprint = "fingerprint";

std::vector<Fact> must_be_equal(const EngineConfig& config, const EngineOptions& asked, const Model& model) {
  const ModelSpec& spec = model.spec();
  return {{"vocab_size", spec.vocab_size, kSameModel},
          {"hidden_size", spec.hidden_size, kSameModel},
          {"num_layers", spec.num_layers, kSameModel},
          {"num_heads", spec.num_heads, kSameModel},
          {"num_kv_heads", spec.num_kv_heads, kSameModel},
          {"head_dim", spec.head_dim, kSameModel},
          {"intermediate_size", spec.intermediate_size, kSameModel},
          {"max_position", spec.max_position, kSameModel},
          {"expert_parallel", asked.expert_parallel ? 1 : 0, "every host needs the same --expert-parallel"},
          {kFingerprint, std::bit_cast<std::int64_t>(model.fingerprint()), kSameModel},
          {"page_size", config.page_size, kSameDevice},
          {"max_batch_tokens", config.max_batch_tokens, kSameDevice},
          {"max_running", config.max_running, kSameDevice},
          {"max_penalized", config.max_penalized, kSameDevice},
          {"speculate", config.speculate, "give the same --speculate to every host"},
          {"kv_dtype", static_cast<std::int64_t>(config.kv_dtype), kSameDevice},
          {"deterministic", config.deterministic, "give --deterministic to every host or to none"}};
}

// Every rank compares with rank 0, so all of them say the same.
[[noreturn]] void refuse(const Fact& fact, int rank, std::int64_t theirs, std::int64_t primary, const Place& place) {
  const std::string who = concat("rank ", rank, " (host ", rank / place.local_size, ")");
  if (fact.name == kFingerprint) {
    throw InputError(concat(who,
                            " has loaded other weights than rank 0 (host 0): the two models have the same shape, but ",
                            "their files differ; ", fact.advice));
  }
  throw InputError(concat(who, " has ", fact.name, " ", theirs, ", rank 0 (host 0) has ", primary, "; ", fact.advice));
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

EngineConfig agree_on_config(const EngineConfig& own, const EngineOptions& asked, const Model& model,
                             const Place& place) {
  const std::vector<Fact> facts = must_be_equal(own, asked, model);
  std::vector<std::int64_t> mine;
  for (const Fact& fact : facts) mine.push_back(fact.value);
  mine.push_back(own.num_pages);
  mine.push_back(own.num_host_pages);
  std::vector<std::int64_t> all(mine.size() * static_cast<std::size_t>(place.size));
  place.host_comm->all_gather(mine.data(), all.data(), std::ssize(mine) * std::int64_t{sizeof(std::int64_t)}, 0);

  EngineConfig agreed = own;
  for (int rank = 0; rank < place.size; ++rank) {
    const std::span theirs = std::span(all).subspan(static_cast<std::size_t>(rank) * mine.size(), mine.size());
    for (std::size_t i = 0; i < facts.size(); ++i) {
      if (theirs[i] != all[i]) refuse(facts[i], rank, theirs[i], all[i], place);
    }
    agreed.num_pages = std::min(agreed.num_pages, theirs[facts.size()]);
    agreed.num_host_pages = std::min(agreed.num_host_pages, theirs[facts.size() + 1]);
  }
  const std::int64_t cache_tokens = agreed.num_pages * agreed.page_size;
  if (agreed.max_model_len > cache_tokens && asked.max_model_len > 0) {
    throw InputError(concat("--max-model-len ", asked.max_model_len,
                            " is more than the KV cache that every rank has memory for (", cache_tokens,
                            " tokens); set --max-model-len to at most ", cache_tokens));
  }
  agreed.max_model_len = std::min(agreed.max_model_len, cache_tokens);
  return agreed;
}

}  // namespace minisgl
