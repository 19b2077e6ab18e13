// Takes a rank's parts of tensors out of a weight source, checks them against what the configuration promised, and
// packs them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "io/weight_source.h"
#include "kernels/device.h"
#include "layers/sharding.h"
#include "models/expert_files.h"
#include "models/model_shard.h"

namespace minisgl {

// Several projections of one input, as the file has them.
struct FusedMatrix {
  std::string name;  // empty: each projection has a matrix of its own
  std::int64_t first_row = 0;
  std::int64_t num_rows = 0;  // of the whole
};

// A projection's name ("model.layers.0.self_attn.q_proj", without ".weight") and what is expected of the whole of it.
struct ProjectionRequest {
  std::string name;
  Role role;
  std::int64_t out_features;
  std::int64_t in_features;
  bool bias = false;
  std::int64_t head_dim = 1;     // features of one head, where the cut is by heads
  std::int64_t interleaved = 0;  // the first features of a head that rotate in neighbouring pairs in the file
  // Where the file has several projections as one matrix: that matrix, and the first of its rows that are this
  // projection's.
  FusedMatrix fused = {};
};

// The features of a projection that a rank has: rows or columns, as its role is cut.
Slice slice_of(const ProjectionRequest& request, int rank, int num_ranks);

// The file's row of what is row `row` here, where heads rotate in neighbouring pairs in the file and as halves here.
std::int64_t file_row(const ProjectionRequest& request, std::int64_t row);

// A layer that adapters may change, and what of the files its projections are.
struct AdapterTarget {
  const Linear* linear = nullptr;  // or
  const Experts* experts = nullptr;
  std::vector<ProjectionRequest> projections = {};  // of the linear, in order. Their interleaving is an adapter's
  std::string prefix = {};                          // of the experts' names: "model.layers.0.mlp.experts."
};

// Passes over the same requests: a check, which reads headers only and finds a missing or misshapen tensor before
// anything is loaded, then the load. In the check, what comes back is null or empty.
//
// Ranks: each request is for a whole tensor; what comes back, and what is read of the file, is the part of the device's
// rank (layers/sharding.h). What rotates of queries and keys comes in halves order whichever order the source has.
class WeightLoader {
 public:
  enum class Pass { check, load, dummy };  // dummy: nothing is read; matrices are random, norms 1, biases 0
  // quantize: what projections become that are in bf16, as far as the device has it.
  WeightLoader(const WeightSource& source, Device& device, Pass pass, Quantize quantize,
               std::function<void(std::int64_t)> on_bytes, ExpertCut expert_cut = ExpertCut::width);

  std::vector<float> vector(const std::string& name, std::int64_t size);
  // The same plus `offset`, on the device.
  DeviceBuffer norm(const std::string& name, std::int64_t size, double offset = 0.0);
  // The rank's part of a norm over the features that `request` gives.
  DeviceBuffer head_norm(const std::string& name, const ProjectionRequest& request);
  // The rank's rows of the embedding or the head.
  std::shared_ptr<const Matrix> vocabulary(const std::string& name, std::int64_t vocab_size, std::int64_t hidden_size);
  // Projections of one input, merged.
  std::unique_ptr<const Linear> linear(const std::vector<ProjectionRequest>& requests);
  // The experts of the layer whose tensors' names begin with `prefix`, of which the rank has its part.
  std::unique_ptr<const Experts> experts(const std::string& prefix, const ModelSpec& spec);

  // Layers that were loaded so far, but for routers.
  std::vector<AdapterTarget> take_adapter_targets() { return std::move(adapter_targets_); }

  bool contains(const std::string& name) const { return source_.contains(name); }
  // Tensors of the source that nobody has asked for so far, sorted.
  std::vector<std::string> unread() const;
  // File bytes of each format, of the rank's parts of all matrices so far. What was e4m3, or was to be, counts as what
  // it became.
  const std::vector<std::int64_t>& bytes_by_dtype() const { return bytes_by_dtype_; }
  std::int64_t expert_bytes() const { return expert_bytes_; }  // those of experts among them

 private:
  Projection projection(const ProjectionRequest& request);
  std::shared_ptr<const Matrix> matrix(const std::string& name, const ProjectionRequest& request);
  std::shared_ptr<const Matrix> kept_matrix(const std::string& name, const ProjectionRequest& request,
                                            std::int64_t rows, std::int64_t cols);
  // What `raw`, the rank's part of the file's tensor, becomes on the device.
  std::shared_ptr<const Matrix> made(DType dtype, std::int64_t rows, std::int64_t cols, std::span<const std::byte> raw,
                                     const ScaleGrid& scales, Role role);
  // Not the embedding and the head, nor routers, which are small and choose.
  bool is_quantized_at_load(Role role) const {
    return quantize_ != Quantize::none && role != Role::vocabulary && role != Role::router;
  }
  // The scales of the rank's part, of a tensor in e4m3.
  ScaleGrid scales_of(const std::string& name, const ProjectionRequest& request, const Slice& slice);
  std::vector<float> bias(const std::string& name, const ProjectionRequest& request);
  Slice slice_of(const ProjectionRequest& request) const {
    return minisgl::slice_of(request, device_.rank(), device_.num_ranks());
  }
  void count(DType dtype, std::int64_t bytes);  // of a matrix that is done
  DeviceBuffer on_device(const std::vector<float>& values);
  std::vector<float> elements(const std::string& name, std::int64_t size, const Slice& wanted);
  TensorData checked(const std::string& name, const std::vector<std::int64_t>& shape);
  void put_expert(const ExpertFiles& files, std::int64_t expert, ExpertMatrix which, const ExpertsShape& shape,
                  std::int64_t place, ExpertsMaker* maker);
  std::unique_ptr<const Experts> note_experts(const std::string& prefix, const ModelSpec& spec,
                                              std::unique_ptr<const Experts> experts);
  TensorData whole_matrix(const std::string& name, const ProjectionRequest& request);

  const WeightSource& source_;
  Device& device_;
  Pass pass_;
  Quantize quantize_;
  ExpertCut expert_cut_;
  std::function<void(std::int64_t)> on_bytes_;  // called with the bytes of each tensor that is done
  std::vector<std::int64_t> bytes_by_dtype_;    // [number of DTypes]
  std::int64_t expert_bytes_ = 0;
  std::vector<AdapterTarget> adapter_targets_;
  std::unordered_set<std::string> read_;  // names of the tensors asked for
};

}  // namespace minisgl
