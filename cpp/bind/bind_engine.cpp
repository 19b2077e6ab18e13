// Python's view of the engine. Everything that can wait releases the GIL; drain() builds all outputs under one hold of
// it.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bind/bind.h"
#include "bind/communicator_handle.h"
#include "bind/request_reader.h"
#include "core/error.h"
#include "core/host_limits.h"
#include "engine/defaults.h"
#include "engine/device.h"
#include "engine/engine.h"
#include "engine/follower.h"
#include "engine/group.h"
#include "gemm/gemm.h"
#include "kernels/cuda/backend.h"

namespace py = pybind11;

namespace minisgl {
namespace {

const char* finish_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::none: return "";
    case FinishReason::stop: return "stop";
    case FinishReason::length: return "length";
    case FinishReason::abort: return "abort";
    case FinishReason::error: return "error";
  }
  return "?";
}

const char* error_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::none: return "";
    case ErrorCode::invalid_request: return "invalid_request";
    case ErrorCode::too_long: return "too_long";
    case ErrorCode::queue_full: return "queue_full";
    case ErrorCode::engine_failure: return "engine_failure";
  }
  return "?";
}

py::list top_list(const std::vector<TokenLogprob>& top) {
  py::list list(top.size());
  for (std::size_t i = 0; i < top.size(); ++i) list[i] = py::make_tuple(top[i].token, top[i].logprob);
  return list;
}

py::tuple output_tuple(const RequestOutput& output) {
  const std::size_t num_tokens = output.tokens.size(), num_prompt = output.prompt_logprobs.size();
  py::list tokens(num_tokens);
  for (std::size_t i = 0; i < num_tokens; ++i) tokens[i] = output.tokens[i].token;
  py::object logprobs = py::none(), prompt_logprobs = py::none(), timings = py::none();
  if (output.has_logprobs) {
    py::list list(num_tokens);
    for (std::size_t i = 0; i < num_tokens; ++i) {
      list[i] = py::make_tuple(output.tokens[i].logprob, top_list(output.tokens[i].top));
    }
    logprobs = std::move(list);
  }
  if (num_prompt > 0) {
    py::list list(num_prompt);
    for (std::size_t i = 0; i < num_prompt; ++i) {
      const TokenOutput& entry = output.prompt_logprobs[i];
      const py::object logprob = i == 0 ? py::object(py::none()) : py::object(py::float_(entry.logprob));
      list[i] = py::make_tuple(entry.token, logprob, top_list(entry.top));
    }
    prompt_logprobs = std::move(list);
  }
  if (output.finish != FinishReason::none) {
    timings = py::make_tuple(output.queue_seconds, output.prefill_seconds, output.decode_seconds);
  }
  return py::make_tuple(output.id, tokens, finish_name(output.finish), error_name(output.error_code), output.error,
                        logprobs, prompt_logprobs, timings);
}

using PhaseReport = std::function<void(const std::string& phase, std::int64_t done, std::int64_t total)>;

// Calls Python with a phase, on a thread that doesn't hold the GIL.
std::function<void(std::int64_t, std::int64_t)> reporter(const PhaseReport& report, const char* phase) {
  return [&report, phase](std::int64_t done, std::int64_t total) {
    if (!report) return;
    const py::gil_scoped_acquire acquire;
    report(phase, done, total);
  };
}

// What both kinds of ranks are made from.
struct RankSettings {
  std::string model_path, device, cache_dir;
  std::int64_t num_threads = 0;
  LoadFormat format = LoadFormat::files;
  EngineSettings engine;
  Place place;
  std::shared_ptr<Progress> progress;
};

// A model on its device, and the options that all ranks agreed on.
class LoadedRank {
 public:
  LoadedRank(const RankSettings& settings, const PhaseReport& report) {
    device = make_device(settings.device, settings.num_threads, settings.place.sums, settings.cache_dir);
    device->pool().report_to(settings.progress);
    settings.progress->set_working(true);
    model = load_model(settings.model_path, *device, reporter(report, "weights"), settings.format);
    // Ranks on one host's processors share its memory.
    const std::int64_t sharers = device->has_own_memory() ? 1 : settings.place.local_size;
    options = choose_options(settings.engine, {model->spec(), model->weight_dtype(), model->weight_bytes(), *device},
                             device->available_memory() / sharers);
    if (settings.place.numbers) {
      settings.progress->set_working(false);  // while it waits for ranks that load more slowly
      options = agree_on_options(options, settings.engine, model->spec(), *settings.place.numbers);
      set_running_limit(settings.place);
      settings.progress->set_working(true);
    }
    device_name_ = device->device_name();
    num_threads_ = device->pool().num_threads();
    num_ranks_ = device->num_ranks();
    weight_bytes_ = model->weight_bytes();
    weight_dtype_ = model->weight_dtype();
    spec_ = model->spec();
  }

  py::dict info(const EngineMemory& memory) const {
    py::dict info;
    info["family"] = spec_.family;
    info["weight_dtype"] = std::string(dtype_info(weight_dtype_).name);
    info["weight_bytes"] = weight_bytes_;
    info["vocab_size"] = spec_.vocab_size;
    info["num_layers"] = spec_.num_layers;
    info["hidden_size"] = spec_.hidden_size;
    info["max_position"] = spec_.max_position;
    info["eos_token_ids"] = spec_.eos_token_ids;
    info["kv_dtype"] = std::string(dtype_info(options.kv_dtype).name);
    info["num_pages"] = options.num_pages;
    info["page_size"] = options.page_size;
    info["kv_cache_tokens"] = options.num_pages * options.page_size;
    info["kv_cache_bytes"] =
        options.num_pages * KvCache::bytes_per_page(spec_, options.kv_dtype, options.page_size, num_ranks_);
    info["max_model_len"] = options.max_model_len;
    info["workspace_bytes"] = memory.workspace;
    info["graph_bytes"] = memory.graphs;
    info["free_bytes"] = memory.free;
    info["num_threads"] = num_threads_;
    info["device"] = device_name_;
    info["isa"] = cpu_isa_name();
    info["max_running"] = options.max_running;
    info["max_batch_tokens"] = options.max_batch_tokens;
    info["max_waiting"] = options.max_waiting;
    return info;
  }

  // Handed on to the engine or the follower.
  std::unique_ptr<Ops> device;
  std::unique_ptr<Model> model;
  EngineOptions options;

 private:
  ModelSpec spec_;
  std::string device_name_;
  int num_threads_ = 0, num_ranks_ = 1;
  std::int64_t weight_bytes_ = 0;
  DType weight_dtype_ = DType::f32;
};

class PyEngine {
 public:
  PyEngine(const RankSettings& settings, const PhaseReport& report)
      : followers_(open_plan_senders(settings.place)),
        loaded_(settings, report),
        engine_(std::make_shared<Engine>(std::move(loaded_.model), std::move(loaded_.device), loaded_.options,
                                         std::move(followers_), reporter(report, "graphs"))) {}

  Engine& engine() const { return *engine_; }
  std::weak_ptr<Engine> weak_engine() const { return engine_; }
  py::dict info() const { return loaded_.info(engine_->memory()); }

 private:
  Followers followers_;  // until the engine has them
  LoadedRank loaded_;
  std::shared_ptr<Engine> engine_;  // shared with nobody; the exit handler looks whether it is still there
};

class PyFollower {
 public:
  PyFollower(const RankSettings& settings, const PhaseReport& report)
      : plans_(open_plan_receiver(settings.place)),
        loaded_(settings, report),
        follower_(std::make_shared<Follower>(std::move(loaded_.model), std::move(loaded_.device), loaded_.options,
                                             std::move(plans_))) {}

  Follower& follower() const { return *follower_; }
  std::weak_ptr<Follower> weak_engine() const { return follower_; }
  py::dict info() const { return loaded_.info({}); }  // rank 0 speaks for all

 private:
  std::unique_ptr<PlanReceiver> plans_;  // until the follower has it
  LoadedRank loaded_;
  std::shared_ptr<Follower> follower_;  // as in PyEngine
};

// The interpreter's end may come before the object's: the engine thread must not run into the destruction of statics.
template <typename Native>
void stop_at_exit(const std::weak_ptr<Native>& weak) {
  py::module_::import("atexit").attr("register")(py::cpp_function([weak] {
    const py::gil_scoped_release release;
    if (const std::shared_ptr<Native> native = weak.lock()) native->stop();
  }));
}

// Destroyed without the GIL: the destructor waits for the step at hand.
struct DeleteWithoutGil {
  template <typename T>
  void operator()(T* object) const {
    const py::gil_scoped_release release;
    delete object;
  }
};
template <typename T>
using Holder = std::unique_ptr<T, DeleteWithoutGil>;

// Engine or follower.
template <typename Rank>
Holder<Rank> make_rank(const std::string& model_path, std::int64_t num_threads, const std::string& kv_dtype,
                       int page_size, std::int64_t kv_cache_tokens, std::int64_t max_model_len,
                       std::int64_t max_running, std::int64_t max_batch_tokens, std::int64_t max_waiting,
                       const std::string& device, double memory_fraction, std::int64_t num_pages,
                       bool disable_cuda_graph, bool disable_overlap, const std::string& load_format,
                       const std::string& cache_dir, const std::optional<Place>& place, const PhaseReport& report,
                       const std::shared_ptr<Progress>& counter) {
  if (load_format != "auto" && load_format != "dummy") {
    throw InputError("--load-format must be auto or dummy, got " + load_format);
  }
  const RankSettings settings{.model_path = model_path,
                              .device = device,
                              .cache_dir = cache_dir,
                              .num_threads = num_threads,
                              .format = load_format == "dummy" ? LoadFormat::dummy : LoadFormat::files,
                              .engine = {.kv_dtype = kv_dtype,
                                         .page_size = page_size,
                                         .kv_cache_tokens = kv_cache_tokens,
                                         .num_pages = num_pages,
                                         .memory_fraction = memory_fraction,
                                         .cuda_graphs = !disable_cuda_graph,
                                         .overlap = !disable_overlap,
                                         .max_model_len = max_model_len,
                                         .max_running = max_running,
                                         .max_batch_tokens = max_batch_tokens,
                                         .max_waiting = max_waiting},
                              .place = place.value_or(Place{}),
                              .progress = counter ? counter : std::make_shared<Progress>()};
  Holder<Rank> rank;
  {
    const py::gil_scoped_release release;
    rank.reset(new Rank(settings, report));
  }
  stop_at_exit(rank->weak_engine());
  return rank;
}

template <typename Class, typename Rank>
void define_making(Class& type) {
  type.def(py::init(&make_rank<Rank>), py::arg("model_path"), py::kw_only(), py::arg("num_threads") = 0,
           py::arg("kv_dtype") = "auto", py::arg("page_size") = 16, py::arg("kv_cache_tokens") = 0,
           py::arg("max_model_len") = 0, py::arg("max_running") = 256, py::arg("max_batch_tokens") = 0,
           py::arg("max_waiting") = 4096, py::arg("device") = "auto", py::arg("memory_fraction") = 0.9,
           py::arg("num_pages") = 0, py::arg("disable_cuda_graph") = false, py::arg("disable_overlap") = false,
           py::arg("load_format") = "auto", py::arg("cache_dir") = "", py::arg("place") = py::none(),
           py::arg("progress") = py::none(), py::arg("counter") = py::none(),
           "Takes its `place` among ranks, if there are several, and loads the weights, calling progress(phase, done, "
           "total) on this thread. 0 and 'auto' are chosen. What a GPU measures of itself is kept in cache_dir, if one "
           "is given. What it does from then on shows in `counter`. Raises InputError, and RankFailure for another "
           "rank's end.");
  type.def_property_readonly("info", &Rank::info, "What was loaded and chosen.");
}

PlanKey read_key(const std::string& bytes) {
  PlanKey key;
  if (bytes.size() != key.size()) throw InputError(concat("a key has 32 bytes, got ", bytes.size()));
  std::memcpy(key.data(), bytes.data(), key.size());
  return key;
}

Place make_place(int rank, int size, int local_size, int ring_fd, const std::string& host, int plan_port,
                 const std::vector<std::tuple<int, py::bytes, py::bytes>>& remotes, std::int64_t spin_microseconds,
                 const CommunicatorHandle& sums, const CommunicatorHandle& numbers, double step_timeout) {
  check_rank(rank, size);
  Place place{.rank = rank,
              .size = size,
              .local_size = local_size,
              .ring_fd = ring_fd,
              .host = host,
              .plan_port = plan_port,
              .remotes = {},
              .spin = std::chrono::microseconds(spin_microseconds),
              .sums = sums.communicator,
              .numbers = numbers.communicator,
              .step_timeout = std::chrono::milliseconds(static_cast<std::int64_t>(step_timeout * 1000))};
  for (const auto& [remote, follower, primary] : remotes) {
    place.remotes.push_back({.rank = remote, .keys = {read_key(follower), read_key(primary)}});
  }
  return place;
}

py::list drain(const PyEngine& self) {
  const std::vector<RequestOutput> outputs = self.engine().drain();
  py::list list(outputs.size());
  for (std::size_t i = 0; i < outputs.size(); ++i) list[i] = output_tuple(outputs[i]);
  return list;
}

py::dict stats(const PyEngine& self) {
  const EngineStats stats = self.engine().stats();
  py::dict dict;
  dict["num_running"] = stats.num_running;
  dict["num_waiting"] = stats.num_waiting;
  dict["pages_total"] = stats.pages_total;
  dict["pages_free"] = stats.pages_free;
  dict["num_preemptions"] = stats.num_preemptions;
  dict["num_steps"] = stats.num_steps;
  dict["prompt_tokens"] = stats.prompt_tokens;
  dict["generated_tokens"] = stats.generated_tokens;
  return dict;
}

}  // namespace

void bind_engine(py::module_& module) {
  module.def(
      "usable_processors", [] { return usable_processors(); },
      "Processors that this process may use: its affinity, cut by the quota of its control groups.");
  module.def("gpu_pci_id", &cuda_pci_id, py::arg("device"), py::call_guard<py::gil_scoped_release>(),
             "The PCI id of a GPU, as /sys/bus/pci/devices has it; '' where there is none.");
  py::class_<Progress, std::shared_ptr<Progress>>(
      module, "Progress", "How far a rank has come: read without a lock, whatever the rank is doing.")
      .def(py::init<>())
      .def_property_readonly("done", &Progress::done, "Grows with every task, step and piece of weights that is done.")
      .def_property_readonly("working", &Progress::working,
                             "Whether there is something to do: then it advances, or is stuck.");
  py::class_<Place>(module, "Place", "Which rank of a group a process is, and how it reaches the others.")
      .def(py::init(&make_place), py::kw_only(), py::arg("rank"), py::arg("size"), py::arg("local_size"),
           py::arg("ring_fd"), py::arg("host"), py::arg("plan_port"), py::arg("remotes"), py::arg("spin_microseconds"),
           py::arg("sums"), py::arg("numbers"), py::arg("step_timeout"),
           "The fields are those of Place in cpp/engine/group.h; `remotes` has (rank, follower's key, rank 0's key).");

  auto follower = py::class_<PyFollower, Holder<PyFollower>>(
      module, "Follower", "A rank that executes what rank 0 plans, on a thread of its own.");
  define_making<decltype(follower), PyFollower>(follower);
  follower.def(
              "start", [](const PyFollower& self) { self.follower().start(); }, "Starts the thread; once.")
      .def(
          "stop", [](const PyFollower& self) { self.follower().stop(); }, py::call_guard<py::gil_scoped_release>(),
          "Ends the thread. Idempotent.")
      .def(
          "event_fd", [](const PyFollower& self) { return self.follower().event_fd(); },
          "A descriptor that is readable once the thread has ended. It belongs to the follower.")
      .def(
          "failure", [](const PyFollower& self) { return self.follower().failure(); },
          "What the thread died of, or ''.")
      .def(
          "blamed_rank", [](const PyFollower& self) { return self.follower().blamed_rank(); },
          "The rank that the failure blames; -1 for none.");

  auto engine =
      py::class_<PyEngine, Holder<PyEngine>>(module, "Engine", "A model behind a scheduler, on a thread of its own.");
  define_making<decltype(engine), PyEngine>(engine);
  engine.def(
            "start", [](const PyEngine& self) { self.engine().start(); }, "Starts the engine thread; once.")
      .def(
          "stop", [](const PyEngine& self) { self.engine().stop(); }, py::call_guard<py::gil_scoped_release>(),
          "Ends the engine thread after the step at hand; live requests end with 'abort'. Idempotent.")
      .def(
          "submit", [](const PyEngine& self, const py::dict& request) { self.engine().submit(read_request(request)); },
          py::arg("request"),
          "Queues a request. A wrong type, an unknown or a missing field raises; what the engine can't serve comes "
          "back as an output with finish reason 'error'.")
      .def(
          "abort", [](const PyEngine& self, std::uint64_t id) { self.engine().abort(id); }, py::arg("request_id"),
          "Ends a request after the step at hand; unknown and finished ids are ignored.")
      .def(
          "event_fd", [](const PyEngine& self) { return self.engine().event_fd(); },
          "A descriptor that is readable while outputs wait. It belongs to the engine.")
      .def("drain", &drain,
           "Takes all outputs: (id, token ids, finish reason, error code, error, logprobs, prompt logprobs, timings).")
      .def("stats", &stats)
      .def(
          "failure", [](const PyEngine& self) { return self.engine().failure(); },
          "What the engine thread died of, or ''.")
      .def(
          "blamed_rank", [](const PyEngine& self) { return self.engine().blamed_rank(); },
          "The rank that the failure blames; -1 for none.");
}

}  // namespace minisgl
