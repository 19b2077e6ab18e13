// The forward pass of a decoder over one step: a mixed batch of prefill chunks and decode tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "core/aligned_buffer.h"
#include "core/thread_pool.h"
#include "kernels/ops.h"
#include "models/model_spec.h"

namespace minisgl {

struct StepBatch {
  std::span<const std::int32_t> tokens;          // [num_rows]
  std::span<const std::int32_t> positions;       // [num_rows]
  std::span<const ops::SequenceRows> sequences;  // cover all rows, in order
  std::span<const std::int32_t> logit_rows;      // [num_logits] ascending rows whose logits are wanted
};

// Keys and values of all layers, [num_layers][2][num_pages, num_kv_heads, page_size, head_dim] of dtype.
// Memory is mapped and untouched until written, so an idle cache costs no resident memory.
class KvCache {
 public:
  KvCache(const ModelSpec& spec, DType dtype, std::int64_t num_pages, int page_size);
  ops::KvLayer layer(std::int64_t index) const;
  DType dtype() const { return dtype_; }
  std::int64_t num_pages() const { return num_pages_; }
  int page_size() const { return page_size_; }
  static std::int64_t bytes_per_page(const ModelSpec& spec, DType dtype, int page_size);

 private:
  DType dtype_;
  std::int64_t num_pages_;
  int page_size_;
  std::int64_t num_layers_;
  int num_kv_heads_, head_dim_;
  AlignedBuffer data_;
};

// What the engine needs of a model. The decoder below is the one real implementation; native tests of the engine
// bring a tiny one of their own.
class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelSpec& spec() const = 0;
  // Computes `batch` against `cache` and writes logits [num_logits, vocab_size] f32, valid until the next call.
  virtual std::span<float> forward(const StepBatch& batch, KvCache& cache) = 0;
  virtual std::int64_t weight_bytes() const = 0;  // bytes that a decode step at batch 1 must read
  virtual DType weight_dtype() const = 0;         // format of most of the weights
};

// progress(done_bytes, total_bytes), called on the loading thread.
using LoadProgress = std::function<void(std::int64_t, std::int64_t)>;

// Loads a folder (config.json + *.safetensors) or a .gguf file. Throws InputError with one clear sentence.
std::unique_ptr<Model> load_model(const std::string& path, ThreadPool& pool, const LoadProgress& progress);

}  // namespace minisgl
