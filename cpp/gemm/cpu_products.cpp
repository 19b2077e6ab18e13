// One lock around the pool and its scratch, and the bias in the kernels' type.
#include "gemm/cpu_products.h"

#include <array>
#include <cstddef>
#include <span>

#include "core/cpu_features.h"
#include "gemm/dispatch.h"

namespace minisgl {
namespace {

constexpr std::int64_t kInlineProducts = 32 << 10;  // fewer are done before another thread wakes

}  // namespace

std::shared_ptr<const PackedMatrix> CpuProducts::pack(const TensorProduct& product, int num_threads) {
  const auto bytes = static_cast<std::size_t>(product.outputs * row_bytes(product.dtype, product.inputs));
  const std::lock_guard lock(mutex_);
  return std::make_shared<const PackedMatrix>(
      PackedMatrix::pack(product.dtype, product.outputs, product.inputs,
                         {static_cast<const std::byte*>(product.weights), bytes}, pool(num_threads)));
}

void CpuProducts::run(const PackedMatrix& weights, const TensorProduct& product, int num_threads) {
  if (product.rows * product.outputs * product.inputs <= kInlineProducts) num_threads = 1;
  const std::lock_guard lock(mutex_);
  const std::array parts{GemmPart{.weight = &weights, .bias = bias_as_f32(product), .column = 0}};
  gemm({.parts = parts,
        .x = product.x,
        .num_rows = product.rows,
        .y = product.y,
        .y_stride = product.outputs,
        .x_dtype = product.dtype,
        .y_dtype = product.dtype},
       workspace_, pool(num_threads));
}

ThreadPool& CpuProducts::pool(int num_threads) {
  return pools_.try_emplace(num_threads, num_threads).first->second;
}

const float* CpuProducts::bias_as_f32(const TensorProduct& product) {
  if (product.bias == nullptr || product.dtype == DType::f32) return static_cast<const float*>(product.bias);
  bias_.reserve(static_cast<std::size_t>(product.outputs) * sizeof(float));
  gemm_kernel_table(cpu_isa()).widen(static_cast<const std::byte*>(product.bias), product.dtype, product.outputs,
                                     bias_.as<float>());
  return bias_.as<float>();
}

}  // namespace minisgl
