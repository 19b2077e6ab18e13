// An engine's options as the user asks for them, the configuration chosen from them, and what the engine says of
// itself.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/dtype.h"

namespace minisgl {

// The options as the user gives them; the names are those of Python's EngineOptions. 0 and "auto" leave the choice to
// the engine (make_device(), choose_config()).
struct EngineOptions {
  std::string model_path = {};
  std::string device = "auto";
  std::string load_format = "auto";  // "dummy": random weights of the model's shapes, for measuring
  bool expert_parallel = false;      // ExpertCut::whole
  std::string expert_folder = {};    // on CPUs: experts lie in a file in it; empty: in memory
  std::string quantize = "none";     // what the weights of linear layers become at load: "fp8", "int4", "q4_1"
  std::string cache_dir = {};        // for what a GPU measures of itself, and a CPU's packed weights; empty: not kept
  std::int64_t packed_cache_bytes = 0;  // that all models' packed weights may take there
  std::int64_t num_threads = 0;         // on the host; 0: all that this process may use
  // auto: the device's choice; on the CPU f16 for quantised and f16 weights, bf16 for bf16, f32 for f32
  std::string kv_dtype = "auto";
  int page_size = 16;
  // 16384, or max_model_len if that is more; less when memory is short. On a device whose memory is all the engine's:
  // what memory_fraction leaves, if all running sequences together can use that much.
  std::int64_t kv_cache_tokens = 0;
  std::int64_t num_pages = 0;         // says the same in pages; at most one of the two
  std::int64_t kv_host_bytes = 0;     // of each host's memory, for its ranks of a group: pages without room on devices
  double memory_fraction = 0.9;       // share of the memory that the weights leave, for cache and workspace
  std::int64_t max_model_len = 0;     // the model's max_position, or what the cache holds if that is less
  std::int64_t max_running = 256;     // cut to max_batch_tokens, so that every running sequence decodes in every step
  std::int64_t max_penalized = 0;     // max_running, as far as their counts take no more than 256 MiB
  std::int64_t max_batch_tokens = 0;  // the device's: 512 on the CPU
  std::int64_t max_waiting = 4096;
  double target_itl_ms = 0;           // see EngineConfig
  std::string speculate = "none";     // or "ngram"; see EngineConfig
  bool enable_lora = false;           // sequences may have adapters
  std::int64_t max_loras = 8;         // EngineConfig::max_adapters, where they may
  std::int64_t max_lora_rank = 64;    // see EngineConfig
  bool disable_cuda_graph = false;    // see EngineConfig
  bool disable_overlap = false;       // see EngineConfig
  bool disable_prefix_cache = false;  // see EngineConfig
  bool deterministic = false;         // see EngineConfig
  bool report_blocks = false;         // see EngineConfig
};

#ifdef NDEBUG
inline constexpr bool is_debug_build = false;
#else
inline constexpr bool is_debug_build = true;
#endif

// What an engine runs with: everything chosen, and the same on all ranks.
struct EngineConfig {
  std::int64_t num_pages = 0;       // at least one sequence of max_model_len must fit
  std::int64_t num_host_pages = 0;  // of the prefix cache's second tier, in the host's memory; 0: there is none
  int page_size = 16;
  DType kv_dtype = DType::f16;
  std::int64_t max_model_len = 0;          // prompt + output tokens of one request
  std::int64_t max_running = 256;          // sequences in one step
  std::int64_t max_penalized = 256;        // of them, with penalties: a device counts their tokens
  std::int64_t max_batch_tokens = 512;     // rows in one step: decode tokens first, prefill chunks in the rest
  std::int64_t max_drafts = 0;             // rows in one step that try drafts
  std::int64_t max_waiting = 4096;         // live requests beyond max_running; one more is refused
  std::int64_t max_adapters = 0;           // different ones in one step; 0: sequences have none
  std::int64_t max_adapter_rank = 0;       // the highest that is loaded
  double target_itl_ms = 0;                // of a step in which sequences decode; 0: as long as it takes
  int mask_limit_ms = 1000;                // for the mask of a token; a grammar that takes longer ends its request
  bool cuda_graphs = true;                 // where the device has them: decode steps are recorded at start
  bool prefix_cache = true;                // what was computed is kept while there is room, and shared
  bool overlap = true;                     // where the device runs ahead: a step is planned while another runs
  bool report_blocks = false;              // rank 0 says what enters and leaves the prefix cache
  bool speculate = false;                  // what stood behind the same tokens before is drafted, where that is faster
  bool deterministic = false;              // answers depend on nothing but their requests; see make_device()
  bool check_invariants = is_debug_build;  // verify scheduler and pages after every step, O(pages)
};

// progress(decode steps recorded, to be recorded), called while an engine is made.
using RecordProgress = std::function<void(std::int64_t, std::int64_t)>;

// Bytes of a device whose memory is the engine's alone, as measured while it was made; elsewhere 0.
struct EngineMemory {
  std::int64_t workspace = 0;        // for the largest step
  std::int64_t graphs = 0;           // recorded steps
  std::int64_t free = 0;             // what is left
  double host_bytes_per_second = 0;  // from the host tier to the device; 0: there is none
  std::int64_t stacked_rows = 0;     // decode steps of up to so many rows run all layers as one operation
};

// Of sequences that may have drafts.
struct SpeculationCounts {
  static constexpr std::size_t kMostDrafts = 16;  // of a sequence in a step

  std::uint64_t num_drafts = 0;  // parts of steps that tried drafts; each made a token more than it accepted
  std::uint64_t draft_tokens = 0, accepted_tokens = 0;
  std::array<std::uint64_t, kMostDrafts> accepted_at = {};  // by place behind the last known token
  double seconds = 0;                                       // in finding drafts and choosing how many
};

struct EngineStats {
  std::int64_t num_running = 0, num_waiting = 0;
  std::vector<std::pair<std::int32_t, std::int64_t>> waiting_by_priority = {};  // in order of priorities
  // Free pages are those that anybody may be given: what nobody but the prefix cache has counts, too.
  std::int64_t pages_total = 0, pages_free = 0;
  std::int64_t pages_cached = 0;  // in the prefix cache, whoever else has them
  // Tokens: looked for in the prefix cache, found there, and given up by it. Prompts count once, preempted or not.
  std::uint64_t prefix_queries = 0, prefix_hits = 0, prefix_evictions = 0;
  // The same of the host tier, where tokens are looked for that aren't on the device.
  std::int64_t host_pages_ready = 0, host_pages_cached = 0;
  std::uint64_t host_queries = 0, host_hits = 0, host_evictions = 0;
  std::uint64_t host_bytes_out = 0, host_bytes_in = 0;  // copied there and back by this rank
  std::uint64_t num_preemptions = 0, num_steps = 0, prompt_tokens = 0, generated_tokens = 0;
  SpeculationCounts speculation = {};
  double step_seconds = 0;         // in which steps were under way; overlapping ones count once
  double device_busy_seconds = 0;  // for these steps; see StepRunner::busy_seconds
};

}  // namespace minisgl
