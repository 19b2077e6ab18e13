// Python's view of a model without a scheduler: logits of every position. For tests and perplexity.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <future>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "bind/bind.h"
#include "comm/shm.h"
#include "core/error.h"
#include "engine/defaults.h"
#include "engine/device.h"
#include "models/adapter_config.h"
#include "models/kv_cache.h"
#include "models/load_model.h"

namespace py = pybind11;

namespace minisgl {
namespace {

constexpr std::int64_t default_chunk = 512;

struct ModelOptions {
  int num_threads;
  std::string kv_dtype;
  int page_size;
  std::int64_t max_tokens;
  std::string device;
  int num_ranks;
  bool expert_parallel;
  std::string expert_folder;
};

KvCache make_cache(const Model& model, Device& device, const ModelOptions& options) {
  const EngineOptions asked{
      .kv_dtype = options.kv_dtype, .page_size = options.page_size, .kv_cache_tokens = options.max_tokens};
  const EngineConfig chosen = choose_config(asked, model, device, std::numeric_limits<std::int64_t>::max() / 2);
  return KvCache(device, model.spec(), chosen.kv_dtype, chosen.num_pages, chosen.page_size);
}

// A model, or one rank's part of it.
struct LoadedModel {
  LoadedModel(const std::string& path, const ModelOptions& options, std::unique_ptr<Device> on)
      : device(std::move(on)),
        model(load_model(path, *device, {}, LoadFormat::files, Quantize::none,
                         options.expert_parallel ? ExpertCut::whole : ExpertCut::width)),
        cache(make_cache(*model, *device, options)) {
    model->set_context(std::min(cache.num_pages() * cache.page_size(), model->spec().max_position));
  }
  std::unique_ptr<Device> device;
  std::unique_ptr<Model> model;
  KvCache cache;
  std::shared_ptr<const Adapter> adapter = {};
};

class PyModel {
 public:
  PyModel(const std::string& path, const ModelOptions& options) {
    if (options.num_ranks < 1) throw InputError(concat("num_ranks must be positive, got ", options.num_ranks));
    if (options.num_ranks == 1) {
      ranks_.emplace_back(path, options,
                          make_device(options.device, options.num_threads, nullptr, "", false, options.expert_folder));
    } else {
      const int num_threads = std::max(1, choose_num_threads(options.num_threads) / options.num_ranks);
      for (auto& communicator : make_shm_communicators(options.num_ranks)) {
        ranks_.emplace_back(
            path, options,
            make_device(options.device, num_threads, std::move(communicator), "", false, options.expert_folder));
      }
    }
    const KvCache& cache = ranks_.front().cache;
    max_tokens_ = cache.num_pages() * cache.page_size();
    // Pages in reverse, so that a position is never its own place in memory.
    page_table_.resize(static_cast<std::size_t>(cache.num_pages()));
    std::iota(page_table_.rbegin(), page_table_.rend(), 0);
  }

  py::array_t<float> forward(const std::vector<std::int32_t>& tokens,
                             const std::optional<std::vector<std::int64_t>>& chunk_sizes) {
    const std::vector<std::int64_t> chunks = checked_chunks(tokens, chunk_sizes);
    const std::int64_t vocab_size = spec().vocab_size;
    py::array_t<float> logits({std::ssize(tokens), vocab_size});
    const std::span out(logits.mutable_data(), static_cast<std::size_t>(logits.size()));
    const py::gil_scoped_release release;
    std::int64_t start = 0;
    for (const std::int64_t size : chunks) {
      const auto first = static_cast<std::size_t>(start * vocab_size),
                 count = static_cast<std::size_t>(size * vocab_size);
      step(std::span(tokens).subspan(static_cast<std::size_t>(start)), start, size, out.subspan(first, count));
      start += size;
    }
    return logits;
  }

  void use_adapter(const std::string& path, std::int64_t max_rank) {
    const py::gil_scoped_release release;
    for (LoadedModel& rank : ranks_) rank.adapter = rank.model->load_adapter(path, max_rank);
  }

  py::dict info() const {
    const ModelSpec& spec = this->spec();
    const LoadedModel& first = ranks_.front();
    py::dict info;
    info["family"] = spec.family;
    info["weight_dtype"] = std::string(dtype_info(first.model->weight_dtype()).name);
    info["weight_bytes"] = first.model->weight_bytes();
    info["vocab_size"] = spec.vocab_size;
    info["num_layers"] = spec.num_layers;
    info["hidden_size"] = spec.hidden_size;
    info["max_position"] = spec.max_position;
    info["window"] = spec.window;
    info["eos_token_ids"] = spec.eos_token_ids;
    info["kv_dtype"] = std::string(dtype_info(first.cache.dtype()).name);
    return info;
  }

 private:
  const ModelSpec& spec() const { return ranks_.front().model->spec(); }

  std::vector<std::int64_t> checked_chunks(const std::vector<std::int32_t>& tokens,
                                           const std::optional<std::vector<std::int64_t>>& chunk_sizes) const {
    const std::int64_t num_tokens = std::ssize(tokens);
    const std::int64_t vocab_size = spec().vocab_size;
    if (num_tokens < 1 || num_tokens > max_tokens_) {
      throw InputError(concat("token_ids must have 1 to ", max_tokens_, " ids, got ", num_tokens));
    }
    for (const std::int32_t token : tokens) {
      if (token < 0 || token >= vocab_size) {
        throw InputError(concat("token id ", token, " is outside the vocabulary of ", vocab_size));
      }
    }
    std::vector<std::int64_t> chunks;
    if (!chunk_sizes) {
      for (std::int64_t start = 0; start < num_tokens; start += default_chunk) {
        chunks.push_back(std::min(default_chunk, num_tokens - start));
      }
      return chunks;
    }
    std::int64_t covered = 0;
    for (const std::int64_t size : *chunk_sizes) {
      if (size < 1 || size > num_tokens - covered) throw InputError(concat("chunk size ", size, " is out of range"));
      covered += size;
    }
    if (covered != num_tokens) throw InputError(concat("chunks hold ", covered, " of ", num_tokens, " tokens"));
    return *chunk_sizes;
  }

  // Logits of all rows; where there are ranks, rank 0's.
  void step(std::span<const std::int32_t> rest, std::int64_t start, std::int64_t size, std::span<float> out) {
    std::vector<std::int32_t> positions(static_cast<std::size_t>(size));
    std::vector<std::int32_t> rows(static_cast<std::size_t>(size));
    std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(start));
    std::iota(rows.begin(), rows.end(), 0);
    const ops::SequenceRows sequence{.first_row = 0,
                                     .num_rows = static_cast<std::int32_t>(size),
                                     .start_position = static_cast<std::int32_t>(start),
                                     .page_table = page_table_.data()};
    const StepBatch batch{.tokens = rest.first(static_cast<std::size_t>(size)),
                          .positions = positions,
                          .sequences = {&sequence, 1},
                          .logit_rows = rows,
                          .page_size = ranks_.front().cache.page_size()};
    const auto forward = [&](LoadedModel& rank) {
      ops::SequenceRows own = sequence;
      own.adapter = rank.adapter.get();
      StepBatch part = batch;
      part.sequences = {&own, 1};
      rank.device->begin_step(part, {});
      return rank.model->forward(part, rank.cache);
    };
    std::vector<std::future<Tensor>> others;
    for (std::size_t i = 1; i < ranks_.size(); ++i) {
      others.push_back(std::async(std::launch::async, [&, i] { return forward(ranks_[i]); }));
    }
    const Tensor logits = forward(ranks_.front());
    ranks_.front().device->download(logits.data, std::as_writable_bytes(out));
    for (std::future<Tensor>& other : others) other.get();
  }

  std::vector<LoadedModel> ranks_;
  std::int64_t max_tokens_ = 0;
  std::vector<std::int32_t> page_table_;
};

std::unique_ptr<PyModel> make_model(const std::string& path, int num_threads, const std::string& kv_dtype,
                                    int page_size, std::int64_t max_tokens, const std::string& device, int num_ranks,
                                    bool expert_parallel, const std::string& expert_folder) {
  const py::gil_scoped_release release;
  return std::make_unique<PyModel>(path, ModelOptions{num_threads, kv_dtype, page_size, max_tokens, device, num_ranks,
                                                      expert_parallel, expert_folder});
}

}  // namespace

void bind_model(py::module_& module) {
  py::class_<PyModel>(module, "Model", "A model without a scheduler. One thread at a time.")
      .def(py::init(&make_model), py::arg("path"), py::kw_only(), py::arg("num_threads") = 0,
           py::arg("kv_dtype") = "auto", py::arg("page_size") = 16, py::arg("max_tokens") = 4096,
           py::arg("device") = "cpu", py::arg("num_ranks") = 1, py::arg("expert_parallel") = false,
           py::arg("expert_folder") = "",
           "num_ranks: the model is cut over so many ranks, threads of this process that share num_threads.")
      .def("forward", &PyModel::forward, py::arg("token_ids"), py::kw_only(), py::arg("chunk_sizes") = py::none(),
           "Logits of every position, f32 [len(token_ids), vocab_size], with a fresh cache. chunk_sizes: how the ids "
           "are cut into steps, e.g. [1] * len(token_ids) to decode one by one; by default steps of 512.")
      .def("use_adapter", &PyModel::use_adapter, py::arg("path"), py::kw_only(), py::arg("max_rank") = kMaxAdapterRank,
           "forward() has the LoRA adapter in this folder from now on. InputError for one that can't be used.")
      .def_property_readonly("info", &PyModel::info);
}

}  // namespace minisgl
