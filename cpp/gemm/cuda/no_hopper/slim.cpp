// A build without compute capability 9.0.
#include "core/error.h"
#include "gemm/cuda/launch.h"

namespace minisgl::cuda {

bool has_slim_gemm() {
  return false;
}
SlimTuning slim_tuning(const SlimArgs&) {
  return {};
}
void slim_gemm(const SlimArgs&, const SlimTuning&, cudaStream_t) {
  MINISGL_CHECK(false, "this build has no products for compute capability 9.0");
}
SlimTuning wide_tuning(const WideArgs&) {
  return {};
}
void wide_gemm(const WideArgs&, const SlimTuning&, cudaStream_t) {
  MINISGL_CHECK(false, "this build has no products for compute capability 9.0");
}

}  // namespace minisgl::cuda
