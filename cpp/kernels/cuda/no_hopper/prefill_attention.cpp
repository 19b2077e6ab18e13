// A CUDA build for other architectures than 90a.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/launch.h"

namespace minisgl::cuda {

template <typename T, int padded_dim>
bool hopper_prefill_attention(const AttentionArgs&, cudaStream_t) {
  return false;
}
template bool hopper_prefill_attention<__nv_bfloat16, 64>(const AttentionArgs&, cudaStream_t);
template bool hopper_prefill_attention<__nv_bfloat16, 80>(const AttentionArgs&, cudaStream_t);
template bool hopper_prefill_attention<__nv_bfloat16, 96>(const AttentionArgs&, cudaStream_t);
template bool hopper_prefill_attention<__nv_bfloat16, 128>(const AttentionArgs&, cudaStream_t);
template bool hopper_prefill_attention<__nv_bfloat16, 256>(const AttentionArgs&, cudaStream_t);
template bool hopper_prefill_attention<half, 64>(const AttentionArgs&, cudaStream_t);
template bool hopper_prefill_attention<half, 80>(const AttentionArgs&, cudaStream_t);
template bool hopper_prefill_attention<half, 96>(const AttentionArgs&, cudaStream_t);
template bool hopper_prefill_attention<half, 128>(const AttentionArgs&, cudaStream_t);
template bool hopper_prefill_attention<half, 256>(const AttentionArgs&, cudaStream_t);
template bool hopper_prefill_attention<e4m3, 64>(const AttentionArgs&, cudaStream_t);
template bool hopper_prefill_attention<e4m3, 128>(const AttentionArgs&, cudaStream_t);
template bool hopper_prefill_attention<e4m3, 256>(const AttentionArgs&, cudaStream_t);

}  // namespace minisgl::cuda
