// Entry points of this room's CUDA kernels. All queue their work on `stream`; pointers are the device's.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "gemm/cuda/weight_format.h"

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
  DeviceWeights weights;  // [outputs (* 2 where gated), inputs]
  const float* bias;      // [outputs (* 2)] or null
  const void* x;          // bf16 [rows, inputs]
  const float* norm;      // [inputs]: weights of the norm of x; null: x as it is
  float eps;              // the epsilon of the norm
  void* y;                // [rows, outputs]
  SkinnyOutput output;
  std::int64_t rows, inputs, outputs;
};
// The most rows that the kernels for few rows take; of other formats than bf16 slim_gemm() takes as few, none of e4m3.
constexpr std::int64_t most_skinny_rows(WeightFormat format) {
  return format == WeightFormat::bf16 ? 16 : is_quantised(format) ? 1 : 0;
}
constexpr std::int64_t kMostQuantisedInputs = 32768;  // of a product of one row
// Whether there is a kernel for this shape: inputs a multiple of 8.
bool skinny_gemm_fits(WeightFormat format, std::int64_t rows, std::int64_t inputs);
// `added` takes no norm.
void skinny_gemm(const SkinnyArgs& args, cudaStream_t stream);

// The norm of x where its product writes it half done: x is multiplied by the norm's weights, and is to be divided.
struct PreparedNorm {
  const float* squares = nullptr;  // [slim_parts(inputs), rows]: sums of the squares of a row's parts; null: no norm
  float eps = 0;
};
// The same as it is written beside y by `added`.
struct NextNorm {
  const float* weight = nullptr;  // [outputs]; null: no norm follows
  void* scaled = nullptr;         // bf16 [rows, outputs]: y times the weights
  float* squares = nullptr;       // [slim_parts(outputs), rows]
};
constexpr int kSlimPart = 64;
constexpr int slim_parts(std::int64_t cols) {
  return static_cast<int>((cols + kSlimPart - 1) / kSlimPart);
}

// What becomes of heads of 128, queries first, then keys and values: norm and rotation, and keys and values to the
// cache in place of y.
struct SlimHeads {
  int num_heads = 0, num_kv_heads = 0;  // none: outputs are no heads
  const float* query_norm = nullptr;    // [128], or null
  const float* key_norm = nullptr;
  float eps = 0;
  const float* rope_table = nullptr;  // [positions, 128]: cosines, then sines
  void* keys = nullptr;               // bf16 [pages, num_kv_heads, page_size, 128]
  void* values = nullptr;
  int page_size = 1;
  const std::int32_t* positions = nullptr;   // [rows]
  const std::int32_t* cache_rows = nullptr;  // [rows]: negative: nowhere
};
constexpr int kSlimHead = 128;

// A product of some tens of rows.
struct SlimArgs {
  DeviceWeights weights = {};   // [outputs (* 2 where gated), inputs]
  const float* bias = nullptr;  // [outputs (* 2)] or null
  const void* x = nullptr;      // bf16 [rows, inputs]
  void* y = nullptr;            // [rows, outputs]
  SkinnyOutput output = SkinnyOutput::plain;
  std::int64_t rows = 0, inputs = 0, outputs = 0;
  PreparedNorm norm = {};
  NextNorm next = {};
  SlimHeads heads = {};  // of `plain`
};
constexpr std::int64_t kMostSlimRows = 128;                // of a block
constexpr std::int64_t kMostManyRows = 256;                // where it is faster than others
constexpr std::int64_t kMostUnitRows = 2 * kMostSlimRows;  // of quantised weights, in pieces
constexpr std::int64_t most_slim_rows(WeightFormat format) {
  return format == WeightFormat::bf16 ? kMostManyRows : is_quantised(format) ? kMostUnitRows : 64;
}
constexpr std::int64_t fewest_slim_rows(WeightFormat format) {
  return format == WeightFormat::bf16 ? 9 : is_quantised(format) ? 2 : 1;
}

// How it is cut.
struct SlimTuning {
  int weight_rows = 64;           // of a block: 64 or 128; from 129 rows on 128 or, of `gated`, 224
  int splits = 1;                 // of the inputs, 1 to 8
  int shared_bytes = 108 * 1024;  // of a block's stages
};

// Whether this build and the current device have the kernel.
bool has_slim_gemm();
// What was measured to be fast, by the product's shape; with up to kMostSlimRows not by their number.
SlimTuning slim_tuning(const SlimArgs& args);
// inputs: a multiple of 8, of e4m3 of 16; outputs of `gated` and `added`: a multiple of 4. Up to kMostSlimRows, a row's
// bits don't depend on their number.
void slim_gemm(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream);
SlimTuning slim_e4m3_tuning(const SlimArgs& args);
void slim_e4m3_gemm(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream);

// A product of many rows, of weights in e4m3 with x in e4m3.
struct WideArgs {
  DeviceWeights weights = {};       // [outputs (* 2 where gated), inputs]
  const float* bias = nullptr;      // [outputs (* 2)] or null
  const std::byte* x = nullptr;     // [rows, inputs], as quantize_rows() writes it
  const float* x_scales = nullptr;  // [rows]
  void* y = nullptr;                // [rows, outputs]
  SkinnyOutput output = SkinnyOutput::plain;
  std::int64_t rows = 0, inputs = 0, outputs = 0;
};
SlimTuning wide_tuning(const WideArgs& args);
// inputs: a multiple of 16; outputs of `gated` and `added`: a multiple of 4. Where has_slim_gemm().
void wide_gemm(const WideArgs& args, const SlimTuning& tuning, cudaStream_t stream);

// y [rows, cols] += bias [cols]; y in bf16 or f32.
void add_bias(void* y, bool y_is_f32, const float* bias, std::int64_t rows, std::int64_t cols, cudaStream_t stream);

// Bytes of e4m3 [rows, cols] as files have them, in the order of e4m3_place(). cols: a multiple of 16, as in all of
// e4m3.
void place_e4m3(const std::byte* raw, std::int64_t rows, std::int64_t cols, std::byte* y, cudaStream_t stream);
// y bf16 [rows, cols] = the values of weights in another format.
void widen_weights(const DeviceWeights& weights, std::int64_t rows, std::int64_t cols, void* y, cudaStream_t stream);

// Rows as e4m3, each with a scale that its largest magnitude becomes 448 by, in the order of e4m3_place().
struct QuantizeArgs {
  const void* x;      // bf16 [rows, cols], or [rows, 2 * cols] where gated
  const float* norm;  // [cols]: weights of the RMS norm of x, which is quantised then; null: x as it is
  float eps;
  std::int64_t rows, cols;
  std::byte* data;     // [rows, cols]
  float* scales;       // [rows]
  bool gated = false;  // what is quantised is silu(the first half of a row) * the second half, rounded to bf16
};
void quantize_rows(const QuantizeArgs& args, cudaStream_t stream);

// Any stored format to bf16: `count` elements, whole blocks, in the order of the file.
void convert_to_bf16(DType dtype, const std::byte* raw, std::int64_t count, void* out, cudaStream_t stream);

// Values of a fixed random stream, uniform in [-scale, scale].
void fill_random_bf16(void* out, std::int64_t count, float scale, std::uint64_t seed, cudaStream_t stream);

}  // namespace minisgl::cuda
