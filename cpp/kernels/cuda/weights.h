// Matrices and linear layers in a GPU's memory, bf16.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "gemm/weights.h"
#include "kernels/cuda/memory.h"

namespace minisgl::cuda {

class DeviceMatrix final : public Matrix {
 public:
  DeviceMatrix(std::int64_t rows, std::int64_t cols)
      : rows_(rows),
        cols_(cols),
        data_(allocate_on_device(static_cast<std::size_t>(rows * cols) * 2, "the model's weights don't fit it")) {}
  DType dtype() const override { return DType::bf16; }
  std::int64_t rows() const override { return rows_; }
  std::int64_t cols() const override { return cols_; }
  std::size_t nbytes() const override { return data_.size(); }
  std::byte* data() const { return data_.data(); }  // [rows, cols]

 private:
  std::int64_t rows_, cols_;
  DeviceBuffer data_;
};

class DeviceLinear final : public Linear {
 public:
  DeviceLinear(std::shared_ptr<const DeviceMatrix> weight, DeviceBuffer bias)
      : weight_(std::move(weight)), bias_(std::move(bias)) {}
  std::int64_t in_features() const override { return weight_->cols(); }
  std::int64_t out_features() const override { return weight_->rows(); }
  std::int64_t nbytes() const override { return static_cast<std::int64_t>(weight_->nbytes() + bias_.size()); }
  const std::byte* weight() const { return weight_->data(); }
  const float* bias() const { return bias_.as<float>(); }  // or null

 private:
  std::shared_ptr<const DeviceMatrix> weight_;
  DeviceBuffer bias_;  // [out_features] f32
};

// The projections as one, their outputs side by side. Their matrices were made by this device.
std::unique_ptr<const DeviceLinear> join_projections(const std::vector<Projection>& outputs, Uploader& uploader,
                                                     cudaStream_t stream);

}  // namespace minisgl::cuda
