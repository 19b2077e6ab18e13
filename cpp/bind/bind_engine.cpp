// Python's view of the engine. Everything that can wait releases the GIL; take_outputs() builds all outputs under one
// hold of it.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "bind/bind.h"
#include "bind/communicator_handle.h"
#include "bind/options_reader.h"
#include "bind/request_reader.h"
#include "core/error.h"
#include "core/host_limits.h"
#include "engine/open_rank.h"
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
  const auto with = [&](const auto&... more) {
    return py::make_tuple(output.id, tokens, finish_name(output.finish), error_name(output.error_code), output.error,
                          logprobs, prompt_logprobs, timings, output.num_cached, more...);
  };
  if (output.embedding.empty() && output.num_drafts == 0) return with();
  const auto* embedding = reinterpret_cast<const char*>(output.embedding.data());
  const py::bytes bytes(embedding, output.embedding.size() * sizeof(float));
  if (output.num_drafts == 0) return with(bytes);
  return with(bytes, py::make_tuple(output.num_drafts, output.num_accepted));
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

py::dict info_dict(const RankInfo& info) {
  const ModelSpec& spec = info.spec;
  const EngineConfig& config = info.config;
  py::dict dict;
  dict["family"] = spec.family;
  dict["weight_dtype"] = std::string(dtype_info(info.weight_dtype).name);
  dict["weight_bytes"] = info.weight_bytes;
  dict["vocab_size"] = spec.vocab_size;
  dict["num_layers"] = spec.num_layers;
  dict["hidden_size"] = spec.hidden_size;
  dict["max_position"] = spec.max_position;
  dict["eos_token_ids"] = spec.eos_token_ids;
  dict["kv_dtype"] = std::string(dtype_info(config.kv_dtype).name);
  dict["num_pages"] = config.num_pages;
  dict["page_size"] = config.page_size;
  dict["kv_cache_tokens"] = config.num_pages * config.page_size;
  dict["kv_cache_bytes"] = info.kv_cache_bytes;
  dict["max_model_len"] = config.max_model_len;
  dict["workspace_bytes"] = info.memory.workspace;
  dict["graph_bytes"] = info.memory.graphs;
  dict["free_bytes"] = info.memory.free;
  dict["stacked_rows"] = info.memory.stacked_rows;
  dict["num_threads"] = info.num_threads;
  dict["device"] = info.device_name;
  dict["isa"] = cpu_isa_name();
  dict["max_running"] = config.max_running;
  dict["max_penalized"] = config.max_penalized;
  dict["max_batch_tokens"] = config.max_batch_tokens;
  dict["max_waiting"] = config.max_waiting;
  dict["prefix_cache"] = config.prefix_cache;
  dict["host_tokens"] = config.num_host_pages * config.page_size;
  dict["host_bytes"] = info.kv_cache_bytes / config.num_pages * config.num_host_pages;
  dict["host_bytes_per_second"] = info.memory.host_bytes_per_second;
  return dict;
}

// Shared with nobody; the exit handler looks whether the engine is still there.
class PyEngine {
 public:
  PyEngine(const EngineOptions& options, const Place& place, const RankProgress& progress) {
    OpenedEngine opened = open_engine(options, place, progress);
    engine_ = std::move(opened.engine);
    info_ = std::move(opened.info);
  }

  Engine& engine() const { return *engine_; }
  std::weak_ptr<Engine> weak_engine() const { return engine_; }
  py::dict info() const { return info_dict(info_); }

 private:
  std::shared_ptr<Engine> engine_;
  RankInfo info_;
};

// As PyEngine.
class PyFollower {
 public:
  PyFollower(const EngineOptions& options, const Place& place, const RankProgress& progress) {
    OpenedFollower opened = open_follower(options, place, progress);
    follower_ = std::move(opened.follower);
    info_ = std::move(opened.info);
  }

  Follower& follower() const { return *follower_; }
  std::weak_ptr<Follower> weak_engine() const { return follower_; }
  py::dict info() const { return info_dict(info_); }

 private:
  std::shared_ptr<Follower> follower_;
  RankInfo info_;
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

// Engine or follower. `model_path` is one of the options.
template <typename Rank>
Holder<Rank> make_rank(const py::object& model_path, const std::optional<Place>& place, const PhaseReport& report,
                       const std::shared_ptr<Progress>& counter, const py::kwargs& fields) {
  fields["model_path"] = model_path;
  const EngineOptions options = read_options(fields);
  Holder<Rank> rank;
  {
    const py::gil_scoped_release release;
    rank.reset(new Rank(options, place.value_or(Place{}),
                        {.weights = reporter(report, "weights"),
                         .graphs = reporter(report, "graphs"),
                         .counter = counter ? counter : std::make_shared<Progress>()}));
  }
  stop_at_exit(rank->weak_engine());
  return rank;
}

template <typename Class, typename Rank>
void define_making(Class& type) {
  type.def(py::init(&make_rank<Rank>), py::arg("model_path"), py::kw_only(), py::arg("place") = py::none(),
           py::arg("progress") = py::none(), py::arg("counter") = py::none(),
           "Takes its `place` among ranks, if there are several, and loads the weights, calling progress(phase, done, "
           "total) on this thread. What it does from then on shows in `counter`. Keywords besides these are the fields "
           "of EngineOptions in cpp/engine/options.h. Raises TypeError and ValueError that name a wrong option, "
           "InputError, and RankFailure for another rank's end.");
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
                 const CommunicatorHandle& device_comm, const CommunicatorHandle& host_comm, double step_timeout) {
  check_rank(rank, size);
  Place place{.rank = rank,
              .size = size,
              .local_size = local_size,
              .ring_fd = ring_fd,
              .host = host,
              .plan_port = plan_port,
              .remotes = {},
              .spin = std::chrono::microseconds(spin_microseconds),
              .device_comm = device_comm.communicator,
              .host_comm = host_comm.communicator,
              .step_timeout = std::chrono::milliseconds(static_cast<std::int64_t>(step_timeout * 1000))};
  for (const auto& [remote, follower, primary] : remotes) {
    place.remotes.push_back({.rank = remote, .keys = {read_key(follower), read_key(primary)}});
  }
  return place;
}

py::list take_outputs(const PyEngine& self) {
  const std::vector<RequestOutput> outputs = self.engine().take_outputs();
  py::list list(outputs.size());
  for (std::size_t i = 0; i < outputs.size(); ++i) list[i] = output_tuple(outputs[i]);
  return list;
}

void open_grammars(const PyEngine& self, const std::string& library, const py::bytes& lengths, const py::bytes& tokens,
                   std::vector<std::int32_t> ends, const py::bytes& merges) {
  const auto packed = lengths.cast<std::string_view>(), packed_merges = merges.cast<std::string_view>();
  GrammarVocabulary vocabulary{.lengths = std::vector<std::uint32_t>(packed.size() / sizeof(std::uint32_t)),
                               .bytes = tokens.cast<std::string>(),
                               .ends = std::move(ends),
                               .merges = std::vector<TokenMerge>(packed_merges.size() / sizeof(TokenMerge))};
  if (packed_merges.size() % sizeof(TokenMerge) != 0) {
    throw py::value_error(concat("merges has ", packed_merges.size(), " bytes, no multiple of ", sizeof(TokenMerge)));
  }
  if (!packed_merges.empty()) std::memcpy(vocabulary.merges.data(), packed_merges.data(), packed_merges.size());
  if (packed.size() % sizeof(std::uint32_t) != 0) {
    throw py::value_error(concat("lengths has ", packed.size(), " bytes, no multiple of 4"));
  }
  std::memcpy(vocabulary.lengths.data(), packed.data(), packed.size());
  const py::gil_scoped_release release;
  self.engine().open_grammars(library, std::move(vocabulary));
}

const char* kind_name(BlockEvent::Kind kind) {
  switch (kind) {
    case BlockEvent::Kind::stored: return "stored";
    case BlockEvent::Kind::removed: return "removed";
    case BlockEvent::Kind::cleared: return "cleared";
  }
  return "?";
}

py::list take_block_events(const PyEngine& self) {
  const std::vector<BlockEvent> events = self.engine().take_block_events();
  py::list list(events.size());
  for (std::size_t i = 0; i < events.size(); ++i) {
    const BlockEvent& event = events[i];
    const bool has_salt = event.salt[0] != 0 || event.salt[1] != 0;
    const py::bytes salt(reinterpret_cast<const char*>(event.salt.data()), has_salt ? sizeof(event.salt) : 0);
    list[i] = py::make_tuple(kind_name(event.kind), event.medium, event.hashes, event.parent, event.tokens, salt);
  }
  return list;
}

py::dict stats(const PyEngine& self) {
  const EngineStats stats = self.engine().stats();
  py::dict dict;
  dict["num_running"] = stats.num_running;
  dict["num_waiting"] = stats.num_waiting;
  dict["waiting_by_priority"] = stats.waiting_by_priority;
  dict["pages_total"] = stats.pages_total;
  dict["pages_free"] = stats.pages_free;
  dict["pages_cached"] = stats.pages_cached;
  dict["prefix_queries"] = stats.prefix_queries;
  dict["prefix_hits"] = stats.prefix_hits;
  dict["prefix_evictions"] = stats.prefix_evictions;
  dict["host_pages_ready"] = stats.host_pages_ready;
  dict["host_pages_cached"] = stats.host_pages_cached;
  dict["host_queries"] = stats.host_queries;
  dict["host_hits"] = stats.host_hits;
  dict["host_evictions"] = stats.host_evictions;
  dict["host_bytes_out"] = stats.host_bytes_out;
  dict["host_bytes_in"] = stats.host_bytes_in;
  dict["num_preemptions"] = stats.num_preemptions;
  dict["num_drafts"] = stats.speculation.num_drafts;
  dict["draft_tokens"] = stats.speculation.draft_tokens;
  dict["accepted_tokens"] = stats.speculation.accepted_tokens;
  py::list places;
  for (std::size_t i = 0; i < stats.speculation.accepted_at.size() && stats.speculation.num_drafts > 0; ++i) {
    places.append(py::make_tuple(i, stats.speculation.accepted_at[i]));
  }
  dict["accepted_at"] = places;
  dict["draft_seconds"] = stats.speculation.seconds;
  dict["num_steps"] = stats.num_steps;
  dict["prompt_tokens"] = stats.prompt_tokens;
  dict["generated_tokens"] = stats.generated_tokens;
  dict["step_seconds"] = stats.step_seconds;
  return dict;
}

void bind_place(py::module_& module) {
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
           py::arg("device_comm"), py::arg("host_comm"), py::arg("step_timeout"),
           "The fields are those of Place in cpp/engine/group.h; `remotes` has (rank, follower's key, rank 0's key).");
}

void bind_follower(py::module_& module) {
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
          "load_adapter",
          [](const PyFollower& self, std::int32_t id, const std::string& path) {
            self.follower().load_adapter(id, path);
          },
          py::arg("id"), py::arg("path"), py::call_guard<py::gil_scoped_release>(), "As Engine.load_adapter.")
      .def(
          "unload_adapter", [](const PyFollower& self, std::int32_t id) { self.follower().unload_adapter(id); },
          py::arg("id"), "As Engine.unload_adapter.")
      .def(
          "failure", [](const PyFollower& self) { return self.follower().failure(); },
          "What the thread died of, or ''.")
      .def(
          "blamed_rank", [](const PyFollower& self) { return self.follower().blamed_rank(); },
          "The rank that the failure blames; -1 for none.");
}

void bind_rank_0(py::module_& module) {
  auto engine =
      py::class_<PyEngine, Holder<PyEngine>>(module, "Engine", "A model behind a scheduler, on a thread of its own.");
  define_making<decltype(engine), PyEngine>(engine);
  engine.def(
            "start", [](const PyEngine& self) { self.engine().start(); }, "Starts the engine thread; once.")
      .def(
          "stop", [](const PyEngine& self) { self.engine().stop(); }, py::call_guard<py::gil_scoped_release>(),
          "Ends the engine thread after the step at hand; live requests end with 'abort'. Idempotent.")
      .def(
          "open_grammars", &open_grammars, py::kw_only(), py::arg("library"), py::arg("lengths"), py::arg("tokens"),
          py::arg("ends"), py::arg("merges") = py::bytes(),
          "What requests with a grammar need, once: the path of llguidance's extension; of the model's tokens the "
          "lengths in bytes, packed as 32-bit integers, the bytes, one token after the other, those of special tokens "
          "behind a byte ff; the end tokens; and where texts become tokens by merges, of each the two tokens and the "
          "one that they become, packed as 32-bit integers, in the order in which they are made, where -1 twice stands "
          "before a token that a character or a byte is to begin with. Such requests wait for it.")
      .def(
          "refuse_grammars",
          [](const PyEngine& self, const std::string& reason) { self.engine().refuse_grammars(reason); },
          py::arg("reason"), py::call_guard<py::gil_scoped_release>(),
          "In place of open_grammars: requests with a grammar end with an error that says why.")
      .def(
          "submit", [](const PyEngine& self, const py::dict& request) { self.engine().submit(read_request(request)); },
          py::arg("request"),
          "Queues a request. A wrong type, an unknown or a missing field raises; what the engine can't serve comes "
          "back as an output with finish reason 'error'.")
      .def(
          "load_adapter",
          [](const PyEngine& self, std::int32_t id, const std::string& path) { self.engine().load_adapter(id, path); },
          py::arg("id"), py::arg("path"), py::call_guard<py::gil_scoped_release>(),
          "Loads the LoRA adapter in a folder, while requests are served; those with this `adapter` may come "
          "afterwards. Every rank loads it. InputError for one that can't be used.")
      .def(
          "unload_adapter", [](const PyEngine& self, std::int32_t id) { self.engine().unload_adapter(id); },
          py::arg("id"), "The adapter is no more. No live request names it.")
      .def(
          "abort", [](const PyEngine& self, std::uint64_t id) { self.engine().abort(id); }, py::arg("request_id"),
          "Ends a request after the step at hand; unknown and finished ids are ignored.")
      .def(
          "event_fd", [](const PyEngine& self) { return self.engine().event_fd(); },
          "A descriptor that is readable while outputs wait. It belongs to the engine.")
      .def("take_outputs", &take_outputs,
           "Takes all outputs: (id, token ids, finish reason, error code, error, logprobs, prompt logprobs, timings, "
           "cached tokens), and behind them, where there is one, the embedding as 32-bit numbers.")
      .def("take_block_events", &take_block_events,
           "Takes what entered and left the prefix cache, with report_blocks: (\"stored\", \"removed\" or \"cleared\", "
           "medium, block hashes, hash of the block before them or None, token ids, salt).")
      .def("stats", &stats)
      .def(
          "failure", [](const PyEngine& self) { return self.engine().failure(); },
          "What the engine thread died of, or ''.")
      .def(
          "blamed_rank", [](const PyEngine& self) { return self.engine().blamed_rank(); },
          "The rank that the failure blames; -1 for none.");
}

}  // namespace

void bind_engine(py::module_& module) {
  bind_place(module);
  bind_follower(module);
  bind_rank_0(module);
}

}  // namespace minisgl
