// A model as the engine sees it: a forward pass over one step, a mixed batch of prefill chunks and decode tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/error.h"
#include "kernels/device.h"
#include "models/kv_cache.h"
#include "models/model_spec.h"

namespace minisgl {

// What the engine needs of a model, or of a rank's part of it. The decoder (decoder.h) is the one real
// implementation; native tests of the engine bring a tiny one of their own.
class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelSpec& spec() const = 0;  // the whole model's
  // Computes `batch`, for which the device's step was begun, against `cache`. Returns logits [num_logits, vocab_size]
  // f32 in the device's memory, valid until the next call, and gives the device the hidden states of the batch's
  // hidden_rows (Ops::keep_hidden).
  virtual Tensor forward(const StepBatch& batch, KvCache& cache) = 0;
  // Computes the first layer of `batch`, as forward() would, and throws it away: what a device loads or measures at the
  // first step of so many rows is done afterwards.
  virtual void rehearse(const StepBatch&, KvCache&) {}
  // No sequence will have more positions than so many, at most spec().max_position. Called before steps, if at all.
  virtual void set_context(std::int64_t) {}
  // Makes room for the largest steps, where the device must not move anything later (StepRunner::records_steps).
  virtual void reserve(const StepLimits&) {}
  // Bytes of the device that steps within the limits take beside weights and cache: all that forward() and reserve()
  // allocate.
  virtual std::int64_t workspace_bytes(const StepLimits&) const = 0;
  // Decode steps of up to so many rows run all layers as one operation; known when a step has run.
  virtual std::int64_t stacked_rows() const { return 0; }
  virtual std::int64_t weight_bytes() const = 0;  // bytes that a decode step at batch 1 must read
  virtual DType weight_dtype() const = 0;         // format of most of the weights
  // The number that several ranks compare to know that they have the same model (models/fingerprint.h); 0 for one rank.
  virtual std::uint64_t fingerprint() const { return 0; }
  // The adapter of a folder in PEFT's form, of a rank up to `max_rank`. Any thread may call, while steps are computed.
  // Throws InputError for one that can't be used with this model.
  virtual std::shared_ptr<const Adapter> load_adapter(const std::string& path, std::int64_t /*max_rank*/) const {
    throw InputError("'" + path + "': the model takes no adapters");
  }
};

}  // namespace minisgl
