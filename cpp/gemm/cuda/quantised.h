// Weights of 4 to 8 bits in a GPU's memory. All queue their work on `stream`; pointers are the device's.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <optional>

#include "core/dtype.h"
#include "gemm/cuda/launch.h"

namespace minisgl::cuda {

// The format that a stored one is computed in; none: it is converted to bf16.
std::optional<WeightFormat> quantised_format(DType dtype);
// `raw` [rows, cols] as a file stores it, to its format.
void pack_quantised(DType dtype, const std::byte* raw, std::int64_t rows, std::int64_t cols, std::byte* out,
                    cudaStream_t stream);
// bf16 [rows, cols] rounded to q4_zero_128 or q4_offset_32: the group's values lie evenly between its extremes, of the
// former about zero.
void quantise_to(WeightFormat format, const void* plain, std::int64_t rows, std::int64_t cols, std::byte* out,
                 cudaStream_t stream);
// To q8_offset_16, exactly; q4_zero_* has no such form.
void widen_to_bytes(const DeviceWeights& weights, std::int64_t rows, std::int64_t cols, std::byte* out,
                    cudaStream_t stream);
// y [rows, cols] in bf16.
void unpack_quantised(const DeviceWeights& weights, std::int64_t rows, std::int64_t cols, void* y, cudaStream_t stream);

// As skinny_gemm(), of one row. outputs of `gated`: a multiple of 8.
void quantised_row_gemm(const SkinnyArgs& args, cudaStream_t stream);
// As slim_gemm(). outputs of `gated`: a multiple of 8.
void slim_units_gemm(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream);
SlimTuning slim_units_tuning(const SlimArgs& args);

}  // namespace minisgl::cuda
