// Boxes of tensors in global memory, which the copy engine brings to shared memory: one thread begins a copy, a barrier
// counts its bytes. Rows of 128 bytes arrive swizzled as the products take them (wgmma.cuh).
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <array>
#include <cstdint>

#include "core/cuda/runtime.h"
#include "core/cuda/tensor_maps.h"
#include "core/cuda/tile_copies.cuh"

namespace minisgl::cuda::hopper {

// Four dimensions of 2-byte elements, the first one contiguous. A box has 64 elements of that.
struct TensorBoxes {
  std::array<std::uint64_t, 4> sizes;
  std::array<std::uint64_t, 3> strides;  // in bytes, of the second dimension and those after it
  std::array<std::uint32_t, 4> box;
};

inline CUtensorMap tensor_map(const void* data, const TensorBoxes& boxes) {
  const std::array<std::uint32_t, 4> steps{1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result = tensor_map_encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(data),
                                               boxes.sizes.data(), boxes.strides.data(), boxes.box.data(), steps.data(),
                                               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  MINISGL_CHECK(result == CUDA_SUCCESS, "a tensor map can't be made: CUDA driver error ", static_cast<int>(result));
  return map;
}

// True for one lane of a warp; all of its lanes call it. The assembler knows then that a copy is begun once.
__device__ __forceinline__ bool elect_lane() {
  std::uint32_t elected;
  asm volatile("{\n.reg .pred own;\nelect.sync _|own, 0xffffffff;\nselp.u32 %0, 1, 0, own;\n}\n" : "=r"(elected));
  return elected != 0;
}

// Begins to copy the box at these coordinates.
__device__ __forceinline__ void copy_box(std::uint32_t shared, const CUtensorMap& map, int4 at, Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];\n" ::"r"(shared),
      "l"(&map), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.w), "r"(shared_address(&barrier.state))
      : "memory");
}

}  // namespace minisgl::cuda::hopper
