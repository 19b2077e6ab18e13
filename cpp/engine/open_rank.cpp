// The order in which a rank comes to be: its place in the group, device, weights, agreement.
#include "engine/open_rank.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "engine/defaults.h"
#include "engine/device.h"
#include "models/kv_cache.h"

namespace minisgl {
namespace {

Quantize read_quantize(const std::string& name) {
  const auto found = std::ranges::find(kQuantizeNames, name);
  if (found == kQuantizeNames.end()) throw InputError("--quantize must be none, fp8, int4 or q4_1, got " + name);
  return static_cast<Quantize>(found - kQuantizeNames.begin());
}

}  // namespace

LoadedRank load_rank(const EngineOptions& options, const Place& place, const RankProgress& progress) {
  if (options.load_format != "auto" && options.load_format != "dummy") {
    throw InputError("--load-format must be auto or dummy, got " + options.load_format);
  }
  const LoadFormat format = options.load_format == "dummy" ? LoadFormat::dummy : LoadFormat::files;
  const Quantize quantize = read_quantize(options.quantize);
  if (options.deterministic && quantize != Quantize::none) {
    throw InputError(
        "--deterministic and --quantize exclude each other: products of quantised weights depend on the step's rows");
  }
  std::unique_ptr<Device> device = make_device(options.device, options.num_threads, place.device_comm,
                                               options.cache_dir, options.deterministic, options.expert_folder);
  device->pool().report_to(progress.counter);
  progress.counter->set_working(true);
  std::unique_ptr<Model> model = load_model(options.model_path, *device, progress.weights, format, quantize,
                                            options.expert_parallel ? ExpertCut::whole : ExpertCut::width,
                                            {.folder = options.cache_dir.empty() ? "" : options.cache_dir + "/packed",
                                             .most_bytes = options.packed_cache_bytes});
  // Ranks on one host's processors share its memory.
  if (options.kv_host_bytes > 0 && device->has_host_pages()) check_host_memory(options);
  const std::int64_t sharers = device->has_own_memory() ? 1 : place.local_size;
  EngineConfig config =
      choose_config(part_of_rank(options, place.local_size), *model, *device, device->available_memory() / sharers);
  if (place.host_comm) {
    progress.counter->set_working(false);  // while it waits for ranks that load more slowly
    config = agree_on_config(config, options, *model, place);
    set_running_limit(place);
    progress.counter->set_working(true);
  }
  RankInfo info{.spec = model->spec(),
                .config = config,
                .memory = {},
                .weight_dtype = model->weight_dtype(),
                .weight_bytes = model->weight_bytes(),
                .kv_cache_bytes = config.num_pages * KvCache::bytes_per_page(model->spec(), config.kv_dtype,
                                                                             config.page_size, device->num_ranks()),
                .device_name = device->device_name(),
                .num_threads = device->pool().num_threads()};
  return {std::move(device), std::move(model), std::move(info)};
}

OpenedEngine open_engine(const EngineOptions& options, const Place& place, const RankProgress& progress) {
  PlanSenders plan_senders = open_plan_senders(place);
  LoadedRank loaded = load_rank(options, place, progress);
  auto engine = std::make_unique<Engine>(std::move(loaded.model), std::move(loaded.device), loaded.info.config,
                                         std::move(plan_senders), progress.graphs);
  loaded.info.memory = engine->memory();
  return {std::move(engine), std::move(loaded.info)};
}

OpenedFollower open_follower(const EngineOptions& options, const Place& place, const RankProgress& progress) {
  std::unique_ptr<PlanReceiver> plans = open_plan_receiver(place);
  LoadedRank loaded = load_rank(options, place, progress);
  auto follower = std::make_unique<Follower>(std::move(loaded.model), std::move(loaded.device), loaded.info.config,
                                             std::move(plans));
  return {std::move(follower), std::move(loaded.info)};
}

}  // namespace minisgl
