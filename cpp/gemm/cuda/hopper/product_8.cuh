// The tensor cores' products of bf16 with 8 rows of x.
#pragma once

#include "core/cuda/wgmma.cuh"

namespace minisgl::cuda::hopper {

// Of 8 rows.
template <>
struct Product<bf16, 8> {
  static __device__ __forceinline__ void registers_rows(float (&d)[1][4], const std::uint32_t (&a)[4], std::uint64_t b,
                                                        int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, p, 1, 1, 0;\n}\n"
        : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate)
        : "memory");
  }
};

}  // namespace minisgl::cuda::hopper
