// The memory budget and the limits that follow from it.
#include "engine/defaults.h"

#include <algorithm>
#include <cstdio>
#include <limits>

#include "core/error.h"
#include "core/host_limits.h"
#include "engine/executor.h"
#include "engine/speculation.h"
#include "models/adapter_config.h"
#include "models/kv_cache.h"

namespace minisgl {
namespace {

constexpr std::int64_t usual_cache_tokens = 16384;
constexpr std::int64_t least_cache_tokens = 1024;  // a cache chosen smaller than that would surprise
constexpr std::int64_t penalty_bytes = std::int64_t{256} << 20, least_penalized = 16;

void require_range(const char* flag, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value > high) {
    throw InputError(concat(flag, " must be between ", low, " and ", high, ", got ", value));
  }
}

// Tokens of the cache that the user asked for, in either way; 0: none.
std::int64_t asked_cache_tokens(const EngineOptions& options) {
  return options.num_pages > 0 ? options.num_pages * options.page_size : options.kv_cache_tokens;
}

// "auto, f32 or int8": what --kv-dtype may be of the formats for which `allowed` is true.
template <typename Allowed>
std::string kv_dtype_choices(const Allowed& allowed) {
  std::string text = "auto", last;
  for (const DType dtype : kv_dtypes) {
    if (!allowed(dtype)) continue;
    if (!last.empty()) text += ", " + last;
    last = dtype_info(dtype).name;
  }
  return text + " or " + last;
}

DType choose_kv_dtype(const std::string& name, DType weight_dtype, const Hardware& device) {
  if (name == "auto") return device.kv_dtype_for(weight_dtype);
  const std::optional<DType> dtype = kv_dtype_from_name(name);
  if (!dtype) {
    throw InputError(concat("--kv-dtype must be ", kv_dtype_choices([](DType) { return true; }), ", got ", name));
  }
  if (!device.supports_kv_dtype(*dtype)) {
    throw InputError(concat("--kv-dtype ", name, " is not supported on ", device.device_name(), "; use ",
                            kv_dtype_choices([&](DType other) { return device.supports_kv_dtype(other); })));
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

// Each option by itself, then those that must fit together.
void check_options(const EngineOptions& options, const ModelSpec& spec) {
  constexpr std::int64_t many = std::numeric_limits<std::int32_t>::max();
  require_range("--page-size", options.page_size, 1, 1024);
  require_range("--kv-cache-tokens", options.kv_cache_tokens, 0, many);
  require_range("--num-pages", options.num_pages, 0, many);
  require_range("--kv-host-bytes", options.kv_host_bytes, 0, std::int64_t{1} << 50);
  require_range("--max-running", options.max_running, 1, 65536);
  require_range("--max-penalized", options.max_penalized, 0, 65536);
  require_range("--max-batch-tokens", options.max_batch_tokens, 0, 65536);
  require_range("--max-waiting", options.max_waiting, 0, many);
  require_range("--max-loras", options.max_loras, 1, 1024);
  require_range("--max-lora-rank", options.max_lora_rank, 1, kMaxAdapterRank);
  if (options.speculate != "none" && options.speculate != "ngram") {
    throw InputError("--speculate must be none or ngram, got " + options.speculate);
  }
  if (!(options.target_itl_ms >= 0 && options.target_itl_ms <= 60'000)) {
    throw InputError(concat("--target-itl-ms must be between 0 and 60000, got ", options.target_itl_ms));
  }
  if (!(options.memory_fraction > 0 && options.memory_fraction <= 1)) {
    throw InputError(concat("--memory-fraction must be above 0 and at most 1, got ", options.memory_fraction));
  }
  if (options.max_model_len < 0 || options.max_model_len > spec.max_position) {
    throw InputError(concat("--max-model-len must be between 0 and the model's ", spec.max_position, " positions, got ",
                            options.max_model_len));
  }
  if (options.num_pages > 0 && options.kv_cache_tokens > 0) {
    throw InputError("--num-pages and --kv-cache-tokens say the same: give only one of them");
  }
  const std::int64_t asked = asked_cache_tokens(options);
  if (asked > 0 && options.max_model_len > asked) {
    const std::string cache =
        options.num_pages > 0 ? concat("the ", asked, " tokens of --num-pages") : concat("--kv-cache-tokens ", asked);
    throw InputError(
        concat("--max-model-len ", options.max_model_len, " is more than ", cache, ": one request must fit the cache"));
  }
}

// Sequences with penalties that run at once: a count per token of the vocabulary for each.
std::int64_t choose_max_penalized(std::int64_t asked, std::int64_t max_running, std::int64_t vocab_size) {
  const std::int64_t fit = penalty_bytes / (vocab_size * std::int64_t{sizeof(std::uint32_t)});
  return std::min(max_running, asked > 0 ? asked : std::max(least_penalized, fit));
}

// What doesn't depend on the memory.
EngineConfig choose_steps(const EngineOptions& options, const Model& model, const Device& device) {
  EngineConfig config;
  config.page_size = options.page_size;
  config.kv_dtype = choose_kv_dtype(options.kv_dtype, model.weight_dtype(), device);
  if (config.kv_dtype == DType::f8e4m3 && model.spec().head_dim % 16 != 0) {
    throw InputError(concat("--kv-dtype fp8 needs heads of a multiple of 16, this model's have ", model.spec().head_dim,
                            "; use bf16 or auto"));
  }
  config.max_batch_tokens = options.max_batch_tokens > 0 ? options.max_batch_tokens : device.usual_batch_tokens();
  config.max_running = std::min(options.max_running, config.max_batch_tokens);
  config.max_penalized = choose_max_penalized(options.max_penalized, config.max_running, model.spec().vocab_size);
  config.max_waiting = options.max_waiting;
  config.target_itl_ms = options.target_itl_ms;
  config.max_adapters = options.enable_lora ? options.max_loras : 0;
  config.max_adapter_rank = options.max_lora_rank;
  config.cuda_graphs = !options.disable_cuda_graph;
  config.overlap = !options.disable_overlap;
  config.prefix_cache = !options.disable_prefix_cache;
  config.report_blocks = options.report_blocks;
  config.speculate = options.speculate == "ngram";
  if (config.speculate) config.max_drafts = Speculation::kMostStepDrafts;
  config.deterministic = options.deterministic;
  return config;
}

// Pages of the host tier that was asked for.
std::int64_t choose_host_pages(const EngineOptions& options, std::int64_t bytes_per_page, const Device& device) {
  const std::int64_t bytes = options.kv_host_bytes;
  if (bytes == 0) return 0;
  if (!device.has_host_pages()) {
    throw InputError(concat("--kv-host-bytes ", bytes, " is for GPUs: on ", device.device_name(),
                            " the cache is in the host's memory already; raise --kv-cache-tokens instead"));
  }
  if (options.disable_prefix_cache) {
    throw InputError(concat("--kv-host-bytes ", bytes,
                            " keeps pages of the prefix cache, which --disable-prefix-cache ",
                            "turns off: give only one of them"));
  }
  if (bytes < bytes_per_page) {
    throw InputError(concat("--kv-host-bytes must be 0 or at least ", bytes_per_page, " per rank, a page of ",
                            options.page_size, " tokens, got ", bytes));
  }
  return std::min<std::int64_t>(bytes / bytes_per_page, std::numeric_limits<std::int32_t>::max());
}

std::int64_t pages_for(std::int64_t tokens, int page_size) {
  return (tokens + page_size - 1) / page_size;
}

// Pages of the cache that was asked for, or that is useful where there is memory enough.
std::int64_t wanted_pages(const EngineOptions& options, const EngineConfig& config, const ModelSpec& spec,
                          const Device& device) {
  if (const std::int64_t asked = asked_cache_tokens(options); asked > 0) return pages_for(asked, config.page_size);
  if (device.has_own_memory()) {
    const std::int64_t longest = options.max_model_len > 0 ? options.max_model_len : spec.max_position;
    return pages_for(longest, config.page_size) * config.max_running;
  }
  return pages_for(std::max(usual_cache_tokens, options.max_model_len), config.page_size);
}

Budget make_budget(const EngineOptions& options, const EngineConfig& config, const Model& model, const Device& device,
                   std::int64_t available_bytes) {
  const StepLimits largest_step = step_limits(config, model.spec());
  return {
      .weights = model.weight_bytes(),
      .workspace = model.workspace_bytes(largest_step) + device.step_bytes(largest_step),
      .available = available_bytes,
      .bytes_per_page = KvCache::bytes_per_page(model.spec(), config.kv_dtype, config.page_size, device.num_ranks()),
      .usable_share = options.memory_fraction,
      .page_size = config.page_size};
}

// The `wanted` pages, or as many of them as the budget has where the user did not ask for a number.
std::int64_t choose_num_pages(const EngineOptions& options, const ModelSpec& spec, const Budget& budget,
                              std::int64_t wanted) {
  const std::int64_t fit = budget.pages_that_fit();
  if (asked_cache_tokens(options) > 0) {
    if (wanted > fit) budget.refuse(wanted, "--kv-cache-tokens");
    return wanted;
  }
  const bool has_length = options.max_model_len > 0;
  const std::int64_t least =
      pages_for(has_length ? options.max_model_len : std::min(least_cache_tokens, spec.max_position), budget.page_size);
  const std::int64_t num_pages = std::min(wanted, fit);
  if (num_pages < least) budget.refuse(least, has_length ? "--max-model-len" : "--kv-cache-tokens");
  return num_pages;
}

}  // namespace

EngineConfig choose_config(const EngineOptions& options, const Model& model, const Device& device,
                           std::int64_t available_bytes) {
  const ModelSpec& spec = model.spec();
  check_options(options, spec);
  EngineConfig config = choose_steps(options, model, device);
  // A request has at most so many positions. The cache may turn out smaller and shorten it, but the budget comes first.
  const auto longest = [&] {
    return options.max_model_len > 0 ? options.max_model_len
                                     : std::min(spec.max_position, config.num_pages * config.page_size);
  };
  const std::int64_t wanted = wanted_pages(options, config, spec, device);
  config.num_pages = wanted;
  config.max_model_len = longest();
  const Budget budget = make_budget(options, config, model, device, available_bytes);
  config.num_pages = choose_num_pages(options, spec, budget, wanted);
  config.max_model_len = longest();
  config.num_host_pages = choose_host_pages(options, budget.bytes_per_page, device);
  return config;
}

EngineOptions part_of_rank(const EngineOptions& options, std::int64_t ranks) {
  EngineOptions part = options;
  part.kv_host_bytes = options.kv_host_bytes / ranks + (options.kv_host_bytes % ranks > 0 ? 1 : 0);
  return part;
}

void check_host_memory(const EngineOptions& options) {
  const std::int64_t free = available_memory();
  if (options.kv_host_bytes <= free) return;
  throw InputError(concat("--kv-host-bytes ", options.kv_host_bytes, " (", mebibytes(options.kv_host_bytes),
                          " for a replica) is more than the host's free memory, ", mebibytes(free),
                          "; set --kv-host-bytes to at most ", free, " times the number of replicas there"));
}

int choose_num_threads(std::int64_t num_threads) {
  require_range("--threads", num_threads, 0, 1024);
  return num_threads > 0 ? static_cast<int>(num_threads) : usable_processors();
}

}  // namespace minisgl
