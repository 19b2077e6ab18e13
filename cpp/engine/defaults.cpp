// The memory budget and the limits that follow from it.
#include "engine/defaults.h"

#include <algorithm>
#include <cstdio>
#include <limits>

#include "core/error.h"
#include "core/host_limits.h"
#include "models/kv_cache.h"
#include "models/model_shard.h"
#include "sched/scheduler.h"

namespace minisgl {
namespace {

constexpr std::int64_t usual_cache_tokens = 16384;
constexpr std::int64_t least_cache_tokens = 1024;  // a cache chosen smaller than that would surprise

void require_range(const char* flag, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value > high) {
    throw InputError(concat(flag, " must be between ", low, " and ", high, ", got ", value));
  }
}

DType choose_kv_dtype(const std::string& name, DType weight_dtype, const Hardware& device) {
  if (name == "auto") return device.kv_dtype_for(weight_dtype);
  const std::optional<DType> dtype = dtype_from_name(name);
  if (!dtype || is_quantized(*dtype)) throw InputError("--kv-dtype must be auto, f16, bf16 or f32, got " + name);
  if (!device.supports_kv_dtype(*dtype)) {
    throw InputError(concat("--kv-dtype ", name, " is not for ", device.device_name(), "; take f16, bf16 or auto"));
  }
  return *dtype;
}

std::string mebibytes(std::int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*f MiB", bytes < 10 * 1048576 ? 1 : 0, static_cast<double>(bytes) / 1048576);
  return text;
}

struct Budget {
  std::int64_t weights, workspace, available, bytes_per_page;
  double usable_share;
  int page_size;

  std::int64_t pages_that_fit() const {
    const auto usable = static_cast<std::int64_t>(usable_share * static_cast<double>(available)) - workspace;
    return std::max<std::int64_t>(0, usable / bytes_per_page);
  }
  [[noreturn]] void refuse(std::int64_t num_pages, const char* flag) const {
    const std::int64_t fit = pages_that_fit() * page_size;
    const std::string advice =
        fit > 0 ? concat("set ", flag, " to at most ", fit)
                : std::string("lower --max-batch-tokens: the workspace leaves nothing for the cache");
    throw InputError(concat("not enough memory for a KV cache of ", num_pages * page_size, " tokens: weights ",
                            mebibytes(weights), " (already loaded), KV cache ", mebibytes(num_pages * bytes_per_page),
                            ", workspace ", mebibytes(workspace), ", available ", mebibytes(available), " of which ",
                            usable_share * 100, "% may be used; ", advice));
  }
};

}  // namespace

std::int64_t workspace_bytes(const ModelSpec& spec, std::int64_t max_batch_tokens, std::int64_t max_running,
                             int num_ranks) {
  const ModelShard shard = shard_of(spec, num_ranks);
  const std::int64_t qkv = (shard.num_heads + 2 * shard.num_kv_heads) * spec.head_dim;
  const std::int64_t row = 4 * spec.hidden_size + qkv + shard.num_heads * spec.head_dim + 4 * shard.intermediate_size;
  const std::int64_t num_logits = std::min(max_running, max_batch_tokens) + SchedulerOptions{}.max_prompt_logits;
  const std::int64_t gathered = num_ranks > 1 ? (num_ranks + 1) * shard.vocab_size : 0;
  return 4 * (max_batch_tokens * row + num_logits * (spec.vocab_size + gathered));
}

EngineConfig choose_config(const EngineOptions& options, const ModelFacts& model, std::int64_t available_bytes) {
  constexpr std::int64_t many = std::numeric_limits<std::int32_t>::max();
  const ModelSpec& spec = model.spec;
  const int num_ranks = model.device.num_ranks();
  require_range("--page-size", options.page_size, 1, 1024);
  require_range("--kv-cache-tokens", options.kv_cache_tokens, 0, many);
  require_range("--max-running", options.max_running, 1, 65536);
  require_range("--max-batch-tokens", options.max_batch_tokens, 0, 65536);
  require_range("--num-pages", options.num_pages, 0, many);
  if (!(options.memory_fraction > 0 && options.memory_fraction <= 1)) {
    throw InputError(concat("--memory-fraction must be above 0 and at most 1, got ", options.memory_fraction));
  }
  if (options.num_pages > 0 && options.kv_cache_tokens > 0) {
    throw InputError("--num-pages and --kv-cache-tokens say the same: give one of them");
  }
  require_range("--max-waiting", options.max_waiting, 0, many);
  if (options.max_model_len < 0 || options.max_model_len > spec.max_position) {
    throw InputError(concat("--max-model-len must be between 0 and the model's ", spec.max_position, " positions, got ",
                            options.max_model_len));
  }
  const std::int64_t asked_tokens =
      options.num_pages > 0 ? options.num_pages * options.page_size : options.kv_cache_tokens;
  if (asked_tokens > 0 && options.max_model_len > asked_tokens) {
    const std::string cache = options.num_pages > 0 ? concat("the ", asked_tokens, " tokens of --num-pages")
                                                    : concat("--kv-cache-tokens ", asked_tokens);
    throw InputError(
        concat("--max-model-len ", options.max_model_len, " is more than ", cache, ": one request must fit the cache"));
  }

  EngineConfig config;
  config.page_size = options.page_size;
  config.kv_dtype = choose_kv_dtype(options.kv_dtype, model.weight_dtype, model.device);
  config.max_batch_tokens = options.max_batch_tokens > 0 ? options.max_batch_tokens : model.device.usual_batch_tokens();
  config.max_running = std::min(options.max_running, config.max_batch_tokens);
  config.cuda_graphs = options.cuda_graphs;
  config.overlap = options.overlap;
  config.max_waiting = options.max_waiting;

  const StepLimits largest_step{.rows = config.max_batch_tokens,
                                .sequences = config.max_running,
                                .logits = config.max_running + SchedulerOptions{}.max_prompt_logits,
                                .positions = spec.max_position,
                                .pages = options.num_pages,
                                .vocab_size = spec.vocab_size};
  const Budget budget{.weights = model.weight_bytes,
                      .workspace = workspace_bytes(spec, config.max_batch_tokens, config.max_running, num_ranks) +
                                   model.device.step_bytes(largest_step),
                      .available = available_bytes,
                      .bytes_per_page = KvCache::bytes_per_page(spec, config.kv_dtype, config.page_size, num_ranks),
                      .usable_share = options.memory_fraction,
                      .page_size = config.page_size};
  const auto pages_for = [&](std::int64_t tokens) { return (tokens + config.page_size - 1) / config.page_size; };
  const std::int64_t fit = budget.pages_that_fit();
  if (asked_tokens > 0) {
    config.num_pages = pages_for(asked_tokens);
    if (config.num_pages > fit) budget.refuse(config.num_pages, "--kv-cache-tokens");
  } else {
    const std::int64_t longest = options.max_model_len > 0 ? options.max_model_len : spec.max_position;
    const std::int64_t wanted = model.device.has_own_memory()
                                    ? pages_for(longest) * config.max_running
                                    : pages_for(std::max(usual_cache_tokens, options.max_model_len));
    const std::int64_t least =
        pages_for(options.max_model_len > 0 ? options.max_model_len : std::min(least_cache_tokens, spec.max_position));
    config.num_pages = std::min(wanted, fit);
    if (config.num_pages < least)
      budget.refuse(least, options.max_model_len > 0 ? "--max-model-len" : "--kv-cache-tokens");
  }
  config.max_model_len = options.max_model_len > 0 ? options.max_model_len
                                                   : std::min(spec.max_position, config.num_pages * config.page_size);
  return config;
}

int choose_num_threads(std::int64_t num_threads) {
  require_range("--threads", num_threads, 0, 1024);
  return num_threads > 0 ? static_cast<int>(num_threads) : usable_processors();
}

}  // namespace minisgl
