// Takes tensors out of a weight source, checks them against what the configuration promised, and packs them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "io/weight_source.h"
#include "kernels/ops.h"

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

// Passes over the same requests: a check, which reads headers only and finds a missing or misshapen tensor before
// anything is loaded, then the load. In the check, what comes back is null or empty.
//
// Ranks: each request is for a whole tensor. With several ranks this is the one place that cuts: output features for
// column-parallel, heads for QKV, input features for row-parallel projections.
class WeightLoader {
 public:
  enum class Pass { check, load, dummy };  // dummy: nothing is read; matrices are random, norms 1, biases 0
  WeightLoader(const WeightSource& source, Ops& device, Pass pass, std::function<void(std::int64_t)> on_bytes);

  std::vector<float> vector(const std::string& name, std::int64_t size);
  DeviceBuffer norm(const std::string& name, std::int64_t size);  // the same, on the device
  std::shared_ptr<const Matrix> matrix(const std::string& name, std::int64_t rows, std::int64_t cols,
                                       std::int64_t rotary_head_dim = 0);
  // Projections of one input, merged.
  std::unique_ptr<const Linear> linear(const std::vector<ProjectionRequest>& requests);

  bool contains(const std::string& name) const { return source_.contains(name); }
  // File bytes of each format, of all matrices so far.
  const std::vector<std::int64_t>& bytes_by_dtype() const { return bytes_by_dtype_; }

 private:
  Projection projection(const ProjectionRequest& request);
  TensorData checked(const std::string& name, const std::vector<std::int64_t>& shape) const;

  const WeightSource& source_;
  Ops& device_;
  Pass pass_;
  std::function<void(std::int64_t)> on_bytes_;  // called with the bytes of each tensor that is done
  std::vector<std::int64_t> bytes_by_dtype_;    // [number of DTypes]
};

}  // namespace minisgl
