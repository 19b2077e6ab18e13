// Tensors of any framework, lent by Python through DLPack.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "bind/dlpack.h"
#include "core/dtype.h"
#include "core/error.h"

namespace minisgl {

// A dense tensor, borrowed from Python for as long as this object lives. Made, asked and destroyed under the GIL.
class BorrowedTensor {
 public:
  static constexpr int kHost = -1;

  // `name` is the argument's, for messages; `device` the GPU that the tensor must be on, or kHost. Throws InputError.
  BorrowedTensor(const pybind11::object& tensor, std::string name, int device) : name_(std::move(name)) {
    // Asked before the export: a stream is a wrong argument to it for a tensor on the host.
    const auto [type, ordinal] = tensor.attr("__dlpack_device__")().cast<std::pair<std::int32_t, std::int32_t>>();
    if (device == kHost) {
      if (type != dlpack::kCpu) throw InputError(concat(name_, " must be in the host's memory"));
      capsule_ = pybind11::capsule(tensor.attr("__dlpack__")());
    } else {
      if (type != dlpack::kCuda || ordinal != device)
        throw InputError(concat(name_, " must be on CUDA device ", device));
      // -1: no synchronisation with the exporter's stream; the caller passes the stream that it works on.
      capsule_ = pybind11::capsule(tensor.attr("__dlpack__")(pybind11::arg("stream") = -1));
    }
    auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
    if (!managed) throw pybind11::error_already_set();
    tensor_ = &managed->tensor;
    std::int64_t stride = 1;
    for (int dim = tensor_->num_dims - 1; dim >= 0; --dim) {
      if (tensor_->strides && tensor_->shape[dim] > 1 && tensor_->strides[dim] != stride)
        throw InputError(concat(name_, " must be contiguous"));
      stride *= tensor_->shape[dim];
    }
    count_ = stride;
  }

  const std::string& name() const { return name_; }
  void* data() const { return static_cast<char*>(tensor_->data) + tensor_->byte_offset; }
  std::int64_t count() const { return count_; }
  std::int64_t num_bytes() const { return count_ * tensor_->dtype.bits * tensor_->dtype.lanes / 8; }
  std::span<const std::int64_t> shape() const { return {tensor_->shape, static_cast<std::size_t>(tensor_->num_dims)}; }

  DType dtype() const {
    const auto [code, bits, lanes] = tensor_->dtype;
    if (lanes == 1 && code == dlpack::kFloat && bits == 32) return DType::f32;
    if (lanes == 1 && code == dlpack::kFloat && bits == 16) return DType::f16;
    if (lanes == 1 && code == dlpack::kBfloat && bits == 16) return DType::bf16;
    throw InputError(concat(name_, " must be float32, float16 or bfloat16"));
  }

 private:
  std::string name_;
  pybind11::capsule capsule_;  // never renamed, so its own destructor gives the tensor back
  const dlpack::Tensor* tensor_;
  std::int64_t count_;
};

}  // namespace minisgl
