// Products of any sizes, dtype and alignment: what nothing faster takes. Tiles of 32 x 32 sums; each reads 32 rows of x
// and of the weights once.
#include <algorithm>

#include "core/cuda/math.cuh"
#include "core/cuda/runtime.h"
#include "gemm/cuda/tensor_launch.h"

namespace minisgl::cuda {
namespace {

constexpr int kTile = 32;
constexpr int kThreads = 256;
constexpr int kLines = kThreads / kTile;  // rows of a tile that are written at a time
constexpr std::int64_t kMostBlocks = 65536;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    plain_kernel(const T* weights, const T* bias, const T* x, T* y, std::int64_t rows, std::int64_t outputs,
                 std::int64_t inputs, std::int64_t num_tiles) {
  __shared__ float weight_tile[kTile][kTile + 1], x_tile[kTile][kTile + 1];
  const int column = threadIdx.x % kTile, line = threadIdx.x / kTile;
  const std::int64_t tiles_across = (outputs + kTile - 1) / kTile;
  for (std::int64_t tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const std::int64_t first_output = tile % tiles_across * kTile, first_row = tile / tiles_across * kTile;
    float sum[kTile / kLines] = {};
    for (std::int64_t first = 0; first < inputs; first += kTile) {
      const bool inside = first + column < inputs;
      for (int place = line; place < kTile; place += kLines) {
        const std::int64_t output = first_output + place, row = first_row + place;
        weight_tile[place][column] =
            inside && output < outputs ? to_float(weights[output * inputs + first + column]) : 0.0f;
        x_tile[place][column] = inside && row < rows ? to_float(x[row * inputs + first + column]) : 0.0f;
      }
      __syncthreads();
      float part[kTile / kLines] = {};
      for (int k = 0; k < kTile; ++k)
        for (int i = 0; i < kTile / kLines; ++i) part[i] += x_tile[line + kLines * i][k] * weight_tile[column][k];
      for (int i = 0; i < kTile / kLines; ++i) sum[i] += part[i];
      __syncthreads();
    }
    const std::int64_t output = first_output + column;
    if (output >= outputs) continue;
    for (int i = 0; i < kTile / kLines; ++i) {
      const std::int64_t row = first_row + line + kLines * i;
      if (row < rows)
        y[row * outputs + output] = from_float<T>(bias == nullptr ? sum[i] : sum[i] + to_float(bias[output]));
    }
  }
}

template <typename T>
void launch(const TensorProduct& product, cudaStream_t stream) {
  const std::int64_t num_tiles = ((product.outputs + kTile - 1) / kTile) * ((product.rows + kTile - 1) / kTile);
  plain_kernel<T><<<static_cast<unsigned>(std::min(num_tiles, kMostBlocks)), kThreads, 0, stream>>>(
      static_cast<const T*>(product.weights), static_cast<const T*>(product.bias), static_cast<const T*>(product.x),
      static_cast<T*>(product.y), product.rows, product.outputs, product.inputs, num_tiles);
  MINISGL_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void plain_tensor_gemm(const TensorProduct& product, cudaStream_t stream) {
  switch (product.dtype) {
    case DType::f32: return launch<float>(product, stream);
    case DType::f16: return launch<half>(product, stream);
    default: return launch<bf16>(product, stream);
  }
}

}  // namespace minisgl::cuda
