#include "kernels/cuda/prefill_attention.cuh"

namespace minisgl::cuda {
template void prefill_attention<e4m3, 256>(const AttentionArgs& args, cudaStream_t stream);
}  // namespace minisgl::cuda
