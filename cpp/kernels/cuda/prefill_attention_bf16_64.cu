#include "kernels/cuda/prefill_attention.cuh"

namespace minisgl::cuda {
template void prefill_attention<bf16, 64>(const AttentionArgs& args, cudaStream_t stream);
}  // namespace minisgl::cuda
