// A CUDA build for other architectures than 90a.
#include "core/error.h"
#include "kernels/cuda/experts.h"

namespace minisgl::cuda {

bool has_expert_tiles() {
  return false;
}
void multiply_expert_tiles(const ExpertsArgs&, const ExpertTiling&, cudaStream_t) {
  MINISGL_CHECK(false, "a build without the kernel");
}

}  // namespace minisgl::cuda
