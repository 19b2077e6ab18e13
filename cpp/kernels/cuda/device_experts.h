// Experts in a GPU's memory, bf16, and the operation on them.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/tensor.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/products.h"
#include "kernels/ops.h"
#include "kernels/weight_maker.h"

namespace minisgl::cuda {

class DeviceExperts final : public Experts {
 public:
  explicit DeviceExperts(const ExpertsShape& shape);
  const ExpertsShape& shape() const override { return shape_; }
  std::int64_t nbytes() const override;
  ExpertWeights weights() const;

  std::byte* gate_up() const { return gate_up_.data(); }
  std::byte* down() const { return down_.data(); }
  void set_biases(DeviceBuffer gate_up, DeviceBuffer down);

 private:
  ExpertsShape shape_;
  DeviceBuffer gate_up_, down_;  // as ExpertWeights has them
  DeviceBuffer gate_up_bias_, down_bias_;
};

// `uploader`, `stream` and `random_seed` outlive it.
std::unique_ptr<ExpertsMaker> make_device_experts(const ExpertsShape& shape, Uploader& uploader, cudaStream_t stream,
                                                  std::uint64_t& random_seed);

std::int64_t device_experts_scratch_bytes(const ExpertsShape& shape, const RouterRule& rule, std::int64_t num_rows);

// Where what experts make goes.
struct ExpertsOutput {
  Tensor y;
  bool adds = false;           // y is added to where there is no shared expert, too
  const Norm* norm = nullptr;  // a plain RMS norm of y, which `normed` has room for; or null
  Tensor normed = {};
  std::uint64_t* use = nullptr;  // [2], counts of Ops::ExpertUse
};
// Ops::experts. Whether `normed` has been written.
bool run_experts(const ExpertLayer& layer, const LinearInput& x, std::span<std::byte> scratch,
                 const ExpertsOutput& output, Products& products, cudaStream_t stream);

}  // namespace minisgl::cuda
