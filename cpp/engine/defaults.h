// From what a user said, a model and a machine to the engine's options.
#pragma once

#include <cstdint>
#include <string>

#include "engine/engine.h"

namespace minisgl {

// As the user gave them; 0 and "auto" are chosen here.
struct EngineSettings {
  std::string kv_dtype =
      "auto";  // the device's choice; on the CPU f16 for quantised and f16 weights, bf16 for bf16, f32 for f32
  int page_size = 16;
  // 16384, or max_model_len if that is more; less when memory is short. On a device whose memory is all the engine's:
  // what memory_fraction leaves, if all running sequences together can use that much.
  std::int64_t kv_cache_tokens = 0;
  std::int64_t num_pages = 0;         // says the same in pages; at most one of the two
  double memory_fraction = 0.9;       // of the memory that the weights leave, for cache and workspace
  bool cuda_graphs = true;            // as in EngineOptions
  bool overlap = true;                // as in EngineOptions
  std::int64_t max_model_len = 0;     // the model's max_position, or what the cache holds if that is less
  std::int64_t max_running = 256;     // cut to max_batch_tokens, so that every running sequence decodes in every step
  std::int64_t max_batch_tokens = 0;  // the device's: 512 on the CPU
  std::int64_t max_waiting = 4096;
};

// What of a loaded model matters here.
struct ModelFacts {
  const ModelSpec& spec;
  DType weight_dtype;
  std::int64_t weight_bytes;
  const Ops& device;
};

// `available_bytes`: memory left after the weights were loaded. Throws InputError with one sentence for a setting out
// of its range and for a budget that can't be met: it names weights, cache, workspace, what is available and the one
// flag to change.
EngineOptions choose_options(const EngineSettings& settings, const ModelFacts& model, std::int64_t available_bytes);

// 0 is every processor that this process may use. Throws InputError.
int choose_num_threads(std::int64_t num_threads);

// Upper estimate of what a step needs on each rank beside weights and cache: activations of all rows, logits of the
// rows that want them.
std::int64_t workspace_bytes(const ModelSpec& spec, std::int64_t max_batch_tokens, std::int64_t max_running,
                             int num_ranks = 1);

}  // namespace minisgl
