// PTX of compute capability 9.0: tiles of a matrix copied from global to shared memory by the copy engine, as wgmma.cuh
// describes them, and what blocks of a cluster read of each other.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "core/cuda/wgmma.cuh"

namespace minisgl::cuda::hopper {

// How long the second-level cache keeps what a copy reads.
enum class Keep : std::uint64_t { normal = 0x1000000000000000, briefly = 0x12f0000000000000 };

// What threads did to shared memory and to barriers is seen by the copy engine and by other blocks.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

// Arrives at the barrier, whose phase is then complete when as many bytes have been copied, too.
__device__ __forceinline__ void arrive_expecting(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void arrive_expecting(Barrier& barrier, std::uint32_t bytes) {
  arrive_expecting(shared_address(&barrier.state), bytes);
}

// Has the description of a matrix at hand before the first copy.
__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(&map) : "memory");
}

// Copies the box of `map` at (row, column) to `to`; what lies outside of the matrix becomes zeros.
__device__ __forceinline__ void copy_tile(const CUtensorMap& map, int row, int column, std::uint32_t to,
                                          Barrier& barrier, Keep keep) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, "
      "%3}], [%4], %5;\n" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(&barrier.state)), "l"(static_cast<std::uint64_t>(keep))
      : "memory");
}

// Reads 16 bytes that lie at `address` in block `rank` of the cluster.
__device__ __forceinline__ float4 load_from_block(std::uint32_t address, int rank) {
  float4 v;
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n}\n"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(address), "r"(rank)
      : "memory");
  return v;
}

// A barrier of all threads of the cluster; what they wrote before they arrived is visible after it where they publish.
template <bool publishes>
__device__ __forceinline__ void arrive_at_cluster() {
  if constexpr (publishes) {
    asm volatile("barrier.cluster.arrive.release.aligned;\n" ::: "memory");
  } else {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n" ::: "memory");
  }
}
__device__ __forceinline__ void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}

}  // namespace minisgl::cuda::hopper
