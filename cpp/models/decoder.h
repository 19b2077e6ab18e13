// The forward pass of a decoder over one step: a mixed batch of prefill chunks and decode tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "kernels/ops.h"
#include "models/model_spec.h"

namespace minisgl {

// Keys and values of all layers, [num_layers][2][num_pages, num_kv_heads, page_size, head_dim] of dtype: of the KV
// heads that the device's rank has. On the CPU memory is mapped and untouched until written, so an idle cache costs no
// resident memory.
class KvCache {
 public:
  KvCache(Ops& device, const ModelSpec& spec, DType dtype, std::int64_t num_pages, int page_size);
  ops::KvLayer layer(std::int64_t index) const;
  // Queues the copy of a page in all layers, before what is queued later.
  void copy_page(Ops& device, std::int32_t source, std::int32_t destination);
  DType dtype() const { return dtype_; }
  std::int64_t num_pages() const { return num_pages_; }
  int page_size() const { return page_size_; }
  // On each of so many ranks.
  static std::int64_t bytes_per_page(const ModelSpec& spec, DType dtype, int page_size, int num_ranks = 1);

 private:
  DType dtype_;
  std::int64_t num_pages_;
  int page_size_;
  std::int64_t num_layers_;
  int num_kv_heads_, head_dim_;
  DeviceBuffer data_;
};

// What the engine needs of a model, or of a rank's part of it. The decoder below is the one real implementation; native
// tests of the engine bring a tiny one of their own.
class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelSpec& spec() const = 0;  // of the whole model
  // Computes `batch`, for which the device's step was begun, against `cache`. Returns logits [num_logits, vocab_size]
  // f32 in the device's memory, valid until the next call.
  virtual Tensor forward(const StepBatch& batch, KvCache& cache) = 0;
  // Makes room for the largest steps, where the device must not move anything later (Ops::records_steps).
  virtual void reserve(const StepLimits&) {}
  virtual std::int64_t weight_bytes() const = 0;  // bytes that a decode step at batch 1 must read
  virtual DType weight_dtype() const = 0;         // format of most of the weights
};

// Where weights come from: the files, or for measuring a random stream of the shapes that the configuration names.
enum class LoadFormat : std::uint8_t { files, dummy };

// progress(done_bytes, total_bytes), called on the loading thread.
using LoadProgress = std::function<void(std::int64_t, std::int64_t)>;

// Loads a folder (config.json + *.safetensors) or a .gguf file; of a folder, dummy weights need config.json alone.
// Of a model over several ranks, each loads the part that its device's rank computes. Throws InputError with one clear
// sentence. `device` outlives the model.
std::unique_ptr<Model> load_model(const std::string& path, Ops& device, const LoadProgress& progress,
                                  LoadFormat format = LoadFormat::files);

}  // namespace minisgl
