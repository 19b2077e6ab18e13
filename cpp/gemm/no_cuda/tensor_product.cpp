// Products on a GPU's tensors in a build without CUDA: the same symbol, one clear error.
#include "gemm/tensor_product.h"

#include "core/error.h"

namespace minisgl {

std::unique_ptr<GpuProducts> make_gpu_products(int) {
  throw InputError(
      "this build of minisgl has no CUDA, so it multiplies no tensors of a GPU; reinstall it where the CUDA toolkit "
      "and "
      "cuBLAS headers are found (MINISGL_CUDA=ON says which part is missing)");
}

}  // namespace minisgl
