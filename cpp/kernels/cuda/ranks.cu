// Operations on a vocabulary that is cut over ranks. Bound by the bytes that they read and write once.
#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "core/cuda/runtime.h"
#include "gemm/cuda/quantised_form.cuh"
#include "kernels/cuda/embed_units.h"
#include "kernels/cuda/launch.h"

namespace minisgl::cuda {
namespace {

constexpr int kThreads = 256;

// One token per block: its row of the table, times `scale` if `scaled`, or zeros where the table doesn't hold it. The
// token is drawn[-1 - token] where it is below 0.
template <bool scaled>
__global__ void __launch_bounds__(kThreads)
    embed_kernel(const bf16* table, const std::int32_t* tokens, const std::int32_t* drawn, std::int64_t first_token,
                 std::int64_t num_tokens, std::int64_t cols, float scale, bf16* y) {
  let_next_start();
  wait_for_previous();
  std::int32_t token = tokens[blockIdx.x];
  if (token < 0) token = drawn[-1 - token];
  const std::int64_t index = token - first_token;
  const bool is_here = index >= 0 && index < num_tokens;
  const bf16* from = table + (is_here ? index * cols : 0);
  bf16* to = y + blockIdx.x * cols;
  if constexpr (scaled) {
    for (std::int64_t i = threadIdx.x; i < cols; i += kThreads)
      to[i] = __float2bfloat16(is_here ? to_float(from[i]) * scale : 0.0f);
  } else if (cols % 8 == 0) {
    for (std::int64_t i = threadIdx.x; i < cols / 8; i += kThreads) {
      reinterpret_cast<uint4*>(to)[i] = is_here ? reinterpret_cast<const uint4*>(from)[i] : uint4{};
    }
  } else {
    for (std::int64_t i = threadIdx.x; i < cols; i += kThreads) to[i] = is_here ? from[i] : __float2bfloat16(0.0f);
  }
}

// The same of a quantised table. A thread takes a share of a unit's row at a time.
template <typename Form>
__global__ void __launch_bounds__(kThreads)
    embed_units_kernel(const std::byte* table, const std::int32_t* tokens, const std::int32_t* drawn,
                       std::int64_t first_token, std::int64_t num_tokens, std::int64_t cols, float factor, bf16* y) {
  let_next_start();
  wait_for_previous();
  std::int32_t token = tokens[blockIdx.x];
  if (token < 0) token = drawn[-1 - token];
  const std::int64_t index = token - first_token, chunks = (cols + kUnitColumns - 1) / kUnitColumns;
  const bool is_here = index >= 0 && index < num_tokens;
  const int row = is_here ? static_cast<int>(index % kUnitRows) : 0;
  const std::byte* units = table + (is_here ? index / kUnitRows * chunks * Form::kBytes : 0);
  for (int place = threadIdx.x; place < 4 * chunks; place += kThreads) {
    const int s = place % 4;
    const std::byte* unit = units + place / 4 * Form::kBytes;
    const auto load_scale = loads_from(unit + Form::kScalesAt + row * Form::kScaleRowBytes);
    RowShare<Form> share;
    share.load(4 * row + s, loads_from(unit));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      std::uint32_t words[2];
      share.bytes(j, words);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const GroupScale<Form> of = scale_of<Form>((32 * j + 16 * h) / Form::kGroup, load_scale);
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          const std::int64_t column = place / 4 * kUnitColumns + 32 * j + 16 * h + 8 * w + 2 * s;
          if (column >= cols) continue;
          const std::uint32_t pair = value_pair(words[w], h, of);  // as a table of bf16
          const float low = __uint_as_float(pair << 16) * factor, high = __uint_as_float(pair & 0xffff0000u) * factor;
          *reinterpret_cast<std::uint32_t*>(y + blockIdx.x * cols + column) = is_here ? pack2<bf16>(low, high) : 0;
        }
      }
    }
  }
}

// One element of y per thread; blockIdx.y is the row.
__global__ void __launch_bounds__(kThreads)
    join_columns_kernel(const float* parts, std::int64_t part_cols, std::int64_t cols, float* y) {
  let_next_start();
  wait_for_previous();
  const std::int64_t row = blockIdx.y, col = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (col >= cols) return;
  y[row * cols + col] = parts[(col / part_cols * gridDim.y + row) * part_cols + col % part_cols];
}

}  // namespace

void embed_units(const StepData& step, const DeviceWeights& table, std::int64_t first_token, std::int64_t num_tokens,
                 std::int64_t cols, float scale, void* y, cudaStream_t stream) {
  with_form(table.format, [&]<typename Form>() {
    launch_kernel(embed_units_kernel<Form>, dim3(static_cast<unsigned>(step.num_rows)), kThreads, 0, stream,
                  static_cast<const std::byte*>(table.data), step.tokens, step.drawn_before, first_token, num_tokens,
                  cols, scale, static_cast<bf16*>(y));
  });
}

void embed(const StepData& step, const void* table, std::int64_t first_token, std::int64_t num_tokens,
           std::int64_t cols, float scale, void* y, cudaStream_t stream) {
  launch_kernel(scale == 1.0f ? embed_kernel<false> : embed_kernel<true>, dim3(static_cast<unsigned>(step.num_rows)),
                kThreads, 0, stream, static_cast<const bf16*>(table), step.tokens, step.drawn_before, first_token,
                num_tokens, cols, scale, static_cast<bf16*>(y));
}

void join_columns(const float* parts, std::int64_t rows, std::int64_t part_cols, std::int64_t cols, float* y,
                  cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((cols + kThreads - 1) / kThreads), static_cast<unsigned>(rows));
  launch_kernel(join_columns_kernel, grid, kThreads, 0, stream, parts, part_cols, cols, y);
}

}  // namespace minisgl::cuda
