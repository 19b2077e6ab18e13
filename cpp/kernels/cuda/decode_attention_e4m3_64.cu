#include "kernels/cuda/decode_attention.cuh"

namespace minisgl::cuda {
template void decode_attention<e4m3, 64>(const AttentionArgs& args, cudaStream_t stream);
}  // namespace minisgl::cuda
