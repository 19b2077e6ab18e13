// The kernels of bf16_rows.h and int8_rows.h on the processor's tile registers.
#include "gemm/cpu/amx/bf16_rows.h"
#include "gemm/cpu/amx/int8_rows.h"
#include "gemm/cpu/amx/tiles.h"

namespace minisgl::amx {
namespace {

template <typename Format>
constexpr Kernel kernel(DType dtype) {
  return {.dtype = dtype,
          .min_rows = 1,
          .run = Int8Rows<HardwareTiles, Format>::run,
          .task_rows = int8_max_rows,
          .task_weight_bytes = 1 << 20,
          .tile_groups = 2};
}

constexpr Kernel kernels[] = {
    kernel<Q8_0Parts>(DType::q8_0),   kernel<Q4_0Parts>(DType::q4_0),    kernel<Q4_1Parts>(DType::q4_1),
    kernel<Q4_KParts>(DType::q4_k),   kernel<Q6_KParts>(DType::q6_k),    kernel<Q5_0Parts>(DType::q5_0),
    kernel<Q5_1Parts>(DType::q5_1),   kernel<Q5_KParts>(DType::q5_k),    kernel<Q2_KParts>(DType::q2_k),
    kernel<Q3_KParts>(DType::q3_k),   kernel<Iq4NlParts>(DType::iq4_nl), kernel<Iq4XsParts>(DType::iq4_xs),
    kernel<Mxfp4Parts>(DType::mxfp4),
};

}  // namespace

constinit const MoreKernels more_gemm_kernels = {Bf16Rows<HardwareTiles>::run, kernels,
                                                 sizeof(kernels) / sizeof(kernels[0])};

}  // namespace minisgl::amx
