// Products of 129 to 256 rows with weights in bf16: two blocks share the rows.
#include "gemm/cuda/hopper/slim.cuh"
#include "gemm/cuda/hopper/slim_many.h"

namespace minisgl::cuda::hopper {

void slim_gemm_of_many(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream) {
  constexpr int kFewer = 96;  // rows of each
  if (args.rows <= 2 * kFewer) return launch_slim<PlainStages<2, kFewer, true>>(args, tuning, stream);
  launch_slim<PlainStages<2, kMostManyRows / 2, true>>(args, tuning, stream);
}

}  // namespace minisgl::cuda::hopper
