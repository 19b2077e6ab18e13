// Takes tensors out of a weight source, checks them against what the configuration promised, and packs them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "gemm/packed_matrix.h"
#include "io/weight_source.h"
#include "layers/linear.h"
#include "models/decoder.h"

namespace minisgl {

// A projection's name ("model.layers.0.self_attn.q_proj", without ".weight") and what is expected of it.
struct ProjectionRequest {
  std::string name;
  std::int64_t out_features;
  std::int64_t in_features;
  bool bias;
  // Rows of each head are put from interleaved rotation order into halves order when the source has them so; 0: no.
  std::int64_t rotary_head_dim = 0;
};

// Two passes over the same requests: a check, which reads headers only and finds a missing or misshapen tensor before
// anything is loaded, then the load. In the check, matrices and vectors come back empty.
//
// Ranks: each request is for a whole tensor. With several ranks this is the one place that cuts: output features for
// column-parallel, heads for QKV, input features for row-parallel projections.
class WeightLoader {
 public:
  enum class Pass { check, load };
  WeightLoader(const WeightSource& source, ThreadPool& pool, Pass pass, std::function<void(std::int64_t)> on_bytes);

  std::vector<float> vector(const std::string& name, std::int64_t size);
  PackedMatrix matrix(const std::string& name, std::int64_t rows, std::int64_t cols, std::int64_t rotary_head_dim = 0);
  Projection projection(const ProjectionRequest& request);

  bool contains(const std::string& name) const { return source_.contains(name); }
  // File bytes of each format, of all matrices so far.
  const std::vector<std::int64_t>& bytes_by_dtype() const { return bytes_by_dtype_; }

 private:
  TensorData checked(const std::string& name, const std::vector<std::int64_t>& shape) const;

  const WeightSource& source_;
  ThreadPool& pool_;
  Pass pass_;
  std::function<void(std::int64_t)> on_bytes_;  // called with the bytes of each tensor that is done
  std::vector<std::int64_t> bytes_by_dtype_;    // [number of DTypes]
};

}  // namespace minisgl
