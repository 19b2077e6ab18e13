#include "kernels/cuda/hopper/prefill_attention.cuh"

namespace minisgl::cuda {
template bool hopper_prefill_attention<e4m3, 256>(const AttentionArgs& args, cudaStream_t stream);
}  // namespace minisgl::cuda
