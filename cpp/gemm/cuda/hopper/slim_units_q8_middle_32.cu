// Products of some tens of rows by weights in this format.
#include "gemm/cuda/hopper/slim_units.cuh"

namespace minisgl::cuda::hopper {

template void launch_units<FormOf<WeightFormat::q8_middle_32>>(const SlimArgs& args, const SlimTuning& tuning,
                                                               cudaStream_t stream);

}  // namespace minisgl::cuda::hopper
