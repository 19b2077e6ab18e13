// Matrices as the copy engine of compute capability 9.0 knows them.
#pragma once

#include <cuda.h>

#include "core/cuda/tensor_maps.h"

namespace minisgl::cuda::hopper {

// [rows, cols] of bf16, or of bytes, in boxes of [box_rows, box_cols], 128 bytes a row, swizzled as wgmma.cuh has its
// tiles.
inline CUtensorMap tile_map(const void* data, int rows, int cols, int box_rows, int box_cols, bool of_bytes = false) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {(of_bytes ? 1 : 2) * static_cast<cuuint64_t>(cols)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_cols), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  CUtensorMap map;
  const CUresult result = tensor_map_encoder()(
      &map, of_bytes ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data),
      sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  MINISGL_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with ", static_cast<int>(result), ": ", rows,
                " x ", cols);
  return map;
}

// Units of quantised weights, [rows, cols] of `unit` bytes, in boxes of one unit by box_rows. unit: a multiple of 16.
inline CUtensorMap unit_map(const void* data, std::int64_t rows, std::int64_t cols, int unit, int box_rows) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(cols * unit / 8), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(cols * unit)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(unit / 8), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  CUtensorMap map;
  const CUresult result =
      tensor_map_encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT64, 2, const_cast<void*>(data), sizes, strides, box, steps,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  MINISGL_CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with ", static_cast<int>(result), ": ", rows,
                " x ", cols, " units");
  return map;
}

}  // namespace minisgl::cuda::hopper
