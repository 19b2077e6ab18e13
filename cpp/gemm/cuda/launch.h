// Entry points of this room's CUDA kernels. All queue their work on `stream`; pointers are the device's.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace minisgl::cuda {

// A product of few rows, y = x · Wᵀ + bias; or with `gated`, where W is [2 * outputs, inputs],
// y = silu(x · W[:outputs]ᵀ + bias) * (x · W[outputs:]ᵀ + bias).
struct SkinnyArgs {
  const void* weights;  // bf16 [outputs (* 2), inputs]
  const float* bias;    // [outputs (* 2)] or null
  const void* x;        // bf16 [rows, inputs]
  void* y;              // bf16 or f32 [rows, outputs]
  bool y_is_f32;
  bool gated;
  int rows;
  std::int64_t inputs;
  std::int64_t outputs;
};
constexpr int kMaxSkinnyRows = 16;
// Whether the kernel takes this shape: inputs a multiple of 32.
bool skinny_gemm_fits(int rows, std::int64_t inputs);
void skinny_gemm(const SkinnyArgs& args, cudaStream_t stream);

// y [rows, cols] += bias [cols]; y in bf16 or f32.
void add_bias(void* y, bool y_is_f32, const float* bias, std::int64_t rows, std::int64_t cols, cudaStream_t stream);

// Any stored format to bf16: `count` elements, whole blocks, in the order of the file.
void convert_to_bf16(DType dtype, const std::byte* raw, std::int64_t count, void* out, cudaStream_t stream);

// Values of a fixed random stream, uniform in [-scale, scale].
void fill_random_bf16(void* out, std::int64_t count, float scale, std::uint64_t seed, cudaStream_t stream);

}  // namespace minisgl::cuda
