// Matrices and linear layers in a GPU's memory, in the formats that its products read.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "gemm/cuda/weight_format.h"
#include "gemm/weights.h"
#include "kernels/cuda/memory.h"

namespace minisgl::cuda {

class DeviceMatrix final : public Matrix {
 public:
  DeviceMatrix(WeightFormat format, std::int64_t rows, std::int64_t cols)
      : format_(format),
        rows_(rows),
        cols_(cols),
        data_(allocate_on_device(weight_bytes(format, rows, cols), "the model's weights don't fit it")),
        scales_(allocate_on_device(scale_bytes(format, rows, cols), "the model's weights don't fit it")) {}
  DType dtype() const override;
  std::int64_t rows() const override { return rows_; }
  std::int64_t cols() const override { return cols_; }
  std::size_t nbytes() const override { return data_.size() + scales_.size(); }
  WeightFormat format() const { return format_; }
  std::byte* data() const { return data_.data(); }  // as the format says
  std::byte* scales() const { return scales_.data(); }
  DeviceWeights view() const { return {format_, data_.data(), scales_.data()}; }

 private:
  WeightFormat format_;
  std::int64_t rows_, cols_;
  DeviceBuffer data_, scales_;
};

class DeviceLinear final : public Linear {
 public:
  DeviceLinear(std::shared_ptr<const DeviceMatrix> weight, DeviceBuffer bias)
      : weight_(std::move(weight)), bias_(std::move(bias)) {}
  std::int64_t in_features() const override { return weight_->cols(); }
  std::int64_t out_features() const override { return weight_->rows(); }
  std::int64_t nbytes() const override { return static_cast<std::int64_t>(weight_->nbytes() + bias_.size()); }
  WeightFormat format() const { return weight_->format(); }
  DeviceWeights weights() const { return weight_->view(); }
  const float* bias() const { return bias_.as<float>(); }  // or null

 private:
  std::shared_ptr<const DeviceMatrix> weight_;
  DeviceBuffer bias_;  // [out_features] f32
};

// The matrix in bf16, itself where it is.
std::shared_ptr<const DeviceMatrix> in_bf16(std::shared_ptr<const DeviceMatrix> matrix, cudaStream_t stream);

// The projections as one, their outputs side by side. Their matrices were made by this device; where their formats
// differ, or can't lie one below the other, they become bf16; of quantised ones q8_offset_16 where that is exact.
std::unique_ptr<const DeviceLinear> join_projections(const std::vector<Projection>& outputs, Uploader& uploader,
                                                     cudaStream_t stream);

}  // namespace minisgl::cuda
