// Entry points of this room's CUDA kernels. All queue their work on `stream`; pointers are the device's.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace minisgl::cuda {

// What becomes of the sums x · Wᵀ + bias.
enum class SkinnyOutput {
  plain,  // as they are, in the format of x
  f32,
  gated,  // W is [2 * outputs, inputs]: y = silu(the first half) * the second half, in bf16
  added,  // y += the sums, in bf16
};

// A product of few rows, of x or of its RMS norm.
struct SkinnyArgs {
  const void* weights;  // bf16 [outputs (* 2 where gated), inputs]
  const float* bias;    // [outputs (* 2)] or null
  const void* x;        // bf16 [rows, inputs]
  const float* norm;    // [inputs]: weights of the norm of x; null: x as it is
  float eps;            // the epsilon of the norm
  void* y;              // [rows, outputs]
  SkinnyOutput output;
  std::int64_t rows, inputs, outputs;
};
constexpr std::int64_t kMaxSkinnyRows = 16;
// Whether the kernel takes this shape: inputs a multiple of 8.
bool skinny_gemm_fits(std::int64_t rows, std::int64_t inputs);
// `added` takes no norm.
void skinny_gemm(const SkinnyArgs& args, cudaStream_t stream);

// y [rows, cols] += bias [cols]; y in bf16 or f32.
void add_bias(void* y, bool y_is_f32, const float* bias, std::int64_t rows, std::int64_t cols, cudaStream_t stream);

// Any stored format to bf16: `count` elements, whole blocks, in the order of the file.
void convert_to_bf16(DType dtype, const std::byte* raw, std::int64_t count, void* out, cudaStream_t stream);

// Values of a fixed random stream, uniform in [-scale, scale].
void fill_random_bf16(void* out, std::int64_t count, float scale, std::uint64_t seed, cudaStream_t stream);

}  // namespace minisgl::cuda
