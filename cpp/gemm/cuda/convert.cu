// What is done to weights when they are loaded: every stored format to bf16, biases, random weights for measuring.
// Bound by reading the file's bytes and writing 2 bytes per element.
#include "core/cuda/math.cuh"
#include "core/cuda/runtime.h"
#include "gemm/cuda/launch.h"

namespace minisgl::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(std::int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

// File blocks have odd sizes, so their halves are read byte by byte.
__device__ float load_half(const std::uint8_t* p) {
  const auto bits = static_cast<unsigned short>(p[0] | p[1] << 8);
  return __half2float(__ushort_as_half(bits));
}

// Element `i` of a block, as gemm/file_blocks.cpp and block_codec.cpp define the formats.
struct Q8_0 {
  static constexpr int kElements = 32, kBytes = 34;
  static __device__ float at(const std::uint8_t* p, int i) {
    return load_half(p) * static_cast<float>(static_cast<std::int8_t>(p[2 + i]));
  }
};
__device__ int nibble(const std::uint8_t* p, int i) {  // 16 bytes: elements 0 to 15 low, 16 to 31 high
  return i < 16 ? p[i] & 15 : p[i - 16] >> 4;
}
struct Q4_0 {
  static constexpr int kElements = 32, kBytes = 18;
  static __device__ float at(const std::uint8_t* p, int i) {
    return load_half(p) * static_cast<float>(nibble(p + 2, i) - 8);
  }
};
struct Q4_1 {
  static constexpr int kElements = 32, kBytes = 20;
  static __device__ float at(const std::uint8_t* p, int i) {
    return load_half(p) * static_cast<float>(nibble(p + 4, i)) + load_half(p + 2);
  }
};
__device__ int bit(const std::uint8_t* p, int i) {
  return p[i / 8] >> i % 8 & 1;
}
struct Q5_0 {
  static constexpr int kElements = 32, kBytes = 22;
  static __device__ float at(const std::uint8_t* p, int i) {
    return load_half(p) * static_cast<float>((nibble(p + 6, i) | bit(p + 2, i) << 4) - 16);
  }
};
struct Q5_1 {
  static constexpr int kElements = 32, kBytes = 24;
  static __device__ float at(const std::uint8_t* p, int i) {
    return load_half(p) * static_cast<float>(nibble(p + 8, i) | bit(p + 4, i) << 4) + load_half(p + 2);
  }
};
__device__ float iq4_value(int q) {
  constexpr std::int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  return static_cast<float>(values[q]);
}
struct IQ4_NL {
  static constexpr int kElements = 32, kBytes = 18;
  static __device__ float at(const std::uint8_t* p, int i) { return load_half(p) * iq4_value(nibble(p + 2, i)); }
};
struct MXFP4 {
  static constexpr int kElements = 32, kBytes = 17;
  static __device__ float at(const std::uint8_t* p, int i) {
    const int q = nibble(p + 1, i), exponent = q >> 1 & 3;
    const int doubled = exponent == 0 ? q & 1 : (2 | (q & 1)) << (exponent - 1);  // 0, 1, 2, 3, 4, 6, 8, 12
    return ldexpf(static_cast<float>(q < 8 ? doubled : -doubled), p[0] - 128);
  }
};
// d, dmin, 12 bytes of 6-bit scales and minimums; q is element i's.
__device__ float scaled_k(const std::uint8_t* p, int i, int q) {
  const int run = i / 32;
  const std::uint8_t* packed = p + 4;
  const int scale = run < 4 ? packed[run] & 63 : (packed[run + 4] & 15) | (packed[run - 4] >> 6 << 4);
  const int minimum = run < 4 ? packed[run + 4] & 63 : (packed[run + 4] >> 4) | (packed[run] >> 6 << 4);
  return load_half(p) * static_cast<float>(scale) * static_cast<float>(q) -
         load_half(p + 2) * static_cast<float>(minimum);
}
__device__ int nibble_by_64(const std::uint8_t* p, int i) {  // each 32 bytes: two runs of 32
  const std::uint8_t byte = p[i / 64 * 32 + i % 32];
  return i / 32 % 2 == 0 ? byte & 15 : byte >> 4;
}
__device__ int bit_pair(const std::uint8_t* p, int i) {  // byte l of 32: elements l, l + 32, l + 64, l + 96 of 128
  return p[32 * (i / 128) + i % 32] >> (i % 128 / 32 * 2) & 3;
}
struct Q4_K {
  static constexpr int kElements = 256, kBytes = 144;
  static __device__ float at(const std::uint8_t* p, int i) { return scaled_k(p, i, nibble_by_64(p + 16, i)); }
};
struct Q5_K {
  static constexpr int kElements = 256, kBytes = 176;
  static __device__ float at(const std::uint8_t* p, int i) {
    return scaled_k(p, i, nibble_by_64(p + 48, i) | bit(p + 16 + i % 32, i / 32) << 4);
  }
};
struct Q2_K {
  static constexpr int kElements = 256, kBytes = 84;
  static __device__ float at(const std::uint8_t* p, int i) {
    const std::uint8_t both = p[i / 16];
    return load_half(p + 80) * static_cast<float>(both & 15) * static_cast<float>(bit_pair(p + 16, i)) -
           load_half(p + 82) * static_cast<float>(both >> 4);
  }
};
struct Q3_K {
  static constexpr int kElements = 256, kBytes = 110;
  static __device__ float at(const std::uint8_t* p, int i) {
    const int run = i / 16;
    const std::uint8_t* packed = p + 96;
    const int low = run < 8 ? packed[run] & 15 : packed[run - 8] >> 4;
    const int scale = (low | (packed[8 + run % 4] >> (run / 4 * 2) & 3) << 4) - 32;
    const int q = (bit_pair(p + 32, i) | bit(p + i % 32, i / 32) << 2) - 4;
    return load_half(p + 108) * static_cast<float>(scale) * static_cast<float>(q);
  }
};
struct IQ4_XS {
  static constexpr int kElements = 256, kBytes = 136;
  static __device__ float at(const std::uint8_t* p, int i) {
    const int run = i / 32, high = (p[2] | p[3] << 8) >> (2 * run) & 3;
    const int scale = ((p[4 + run / 2] >> (run % 2 * 4) & 15) | high << 4) - 32;
    return load_half(p) * static_cast<float>(scale) * iq4_value(nibble(p + 8 + 16 * run, i % 32));
  }
};
struct Q6_K {
  static constexpr int kElements = 256, kBytes = 210;
  static __device__ float at(const std::uint8_t* p, int i) {
    const int part = i / 128, j = i % 128;
    const int low = p[64 * part + j % 64] >> (j < 64 ? 0 : 4) & 15;
    const int high = p[128 + 32 * part + j % 32] >> (j / 32 * 2) & 3;
    const float scale = static_cast<float>(static_cast<std::int8_t>(p[192 + i / 16]));
    return load_half(p + 208) * scale * static_cast<float>((low | high << 4) - 32);
  }
};

// Groups of int4 checkpoints: scale, zero, two elements to a byte.
template <int group>
struct Int4 {
  static constexpr int kElements = group, kBytes = 4 + group / 2;
  static __device__ float at(const std::uint8_t* p, int i) {
    return load_half(p) * (static_cast<float>(p[4 + i / 2] >> (i % 2 * 4) & 15) - load_half(p + 2));
  }
};

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
