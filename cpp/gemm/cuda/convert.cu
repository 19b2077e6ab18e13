// What is done to weights when they are loaded: every stored format to bf16, biases, random weights for measuring.
// Bound by reading the file's bytes and writing 2 bytes per element.
#include "core/cuda/math.cuh"
#include "core/cuda/runtime.h"
#include "gemm/cuda/file_formats.cuh"
#include "gemm/cuda/launch.h"

namespace minisgl::cuda {
namespace {

using namespace file_formats;

constexpr int kThreads = 256;

unsigned blocks_for(std::int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

template <typename Format>
__global__ void dequantize_kernel(const std::uint8_t* raw, std::int64_t count, bf16* out) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  const int in_block = static_cast<int>(i % Format::kElements);
  out[i] = __float2bfloat16(Format::at(raw + i / Format::kElements * Format::kBytes, in_block));
}

template <typename T>
__global__ void convert_kernel(const T* raw, std::int64_t count, bf16* out) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) out[i] = __float2bfloat16(to_float(raw[i]));
}

template <typename Y>
__global__ void add_bias_kernel(Y* y, const float* bias, std::int64_t count, std::int64_t cols) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) y[i] = from_float<Y>(to_float(y[i]) + bias[i % cols]);
}

// One round of a 64-bit mixing function over the index: enough to look random to arithmetic.
__global__ void random_kernel(bf16* out, std::int64_t count, float scale, std::uint64_t seed) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  std::uint64_t x = (static_cast<std::uint64_t>(i) + seed) * 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  const float uniform = static_cast<float>(x >> 40) * 0x1p-23f - 1.0f;  // [-1, 1)
  out[i] = __float2bfloat16(uniform * scale);
}

template <typename Format>
void dequantize(const std::byte* raw, std::int64_t count, void* out, cudaStream_t stream) {
  dequantize_kernel<Format><<<blocks_for(count), kThreads, 0, stream>>>(reinterpret_cast<const std::uint8_t*>(raw),
                                                                        count, static_cast<bf16*>(out));
}

}  // namespace

void convert_to_bf16(DType dtype, const std::byte* raw, std::int64_t count, void* out, cudaStream_t stream) {
  if (count == 0) return;
  auto* target = static_cast<bf16*>(out);
  switch (dtype) {
    case DType::f32:
      convert_kernel<<<blocks_for(count), kThreads, 0, stream>>>(reinterpret_cast<const float*>(raw), count, target);
      break;
    case DType::f16:
      convert_kernel<<<blocks_for(count), kThreads, 0, stream>>>(reinterpret_cast<const half*>(raw), count, target);
      break;
    case DType::bf16:
      MINISGL_CUDA_CHECK(cudaMemcpyAsync(out, raw, static_cast<std::size_t>(count) * 2, cudaMemcpyDefault, stream));
      break;
    case DType::q8_0: dequantize<Q8_0>(raw, count, out, stream); break;
    case DType::q4_0: dequantize<Q4_0>(raw, count, out, stream); break;
    case DType::q4_1: dequantize<Q4_1>(raw, count, out, stream); break;
    case DType::q4_k: dequantize<Q4_K>(raw, count, out, stream); break;
    case DType::q6_k: dequantize<Q6_K>(raw, count, out, stream); break;
    case DType::q5_0: dequantize<Q5_0>(raw, count, out, stream); break;
    case DType::q5_1: dequantize<Q5_1>(raw, count, out, stream); break;
    case DType::q5_k: dequantize<Q5_K>(raw, count, out, stream); break;
    case DType::q2_k: dequantize<Q2_K>(raw, count, out, stream); break;
    case DType::q3_k: dequantize<Q3_K>(raw, count, out, stream); break;
    case DType::iq4_nl: dequantize<IQ4_NL>(raw, count, out, stream); break;
    case DType::iq4_xs: dequantize<IQ4_XS>(raw, count, out, stream); break;
    case DType::mxfp4: dequantize<MXFP4>(raw, count, out, stream); break;
    case DType::int4_64: dequantize<Int4<64>>(raw, count, out, stream); break;
    case DType::int4_128: dequantize<Int4<128>>(raw, count, out, stream); break;
    case DType::i8:
    case DType::f8e4m3: MINISGL_CHECK(false, "weights of ", dtype_info(dtype).name);
  }
  MINISGL_CUDA_CHECK(cudaGetLastError());
}

void add_bias(void* y, bool y_is_f32, const float* bias, std::int64_t rows, std::int64_t cols, cudaStream_t stream) {
  const std::int64_t count = rows * cols;
  if (count == 0) return;
  if (y_is_f32) {
    add_bias_kernel<<<blocks_for(count), kThreads, 0, stream>>>(static_cast<float*>(y), bias, count, cols);
  } else {
    add_bias_kernel<<<blocks_for(count), kThreads, 0, stream>>>(static_cast<bf16*>(y), bias, count, cols);
  }
  MINISGL_CUDA_CHECK(cudaGetLastError());
}

void fill_random_bf16(void* out, std::int64_t count, float scale, std::uint64_t seed, cudaStream_t stream) {
  if (count == 0) return;
  random_kernel<<<blocks_for(count), kThreads, 0, stream>>>(static_cast<bf16*>(out), count, scale, seed);
  MINISGL_CUDA_CHECK(cudaGetLastError());
}

}  // namespace minisgl::cuda
