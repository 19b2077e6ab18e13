// Products of a row by weights in this format.
#include "gemm/cuda/quantised_row.cuh"

namespace minisgl::cuda::quantised {

template void launch_row<FormOf<WeightFormat::q4_zero_64>>(const SkinnyArgs& args, cudaStream_t stream);

}  // namespace minisgl::cuda::quantised
