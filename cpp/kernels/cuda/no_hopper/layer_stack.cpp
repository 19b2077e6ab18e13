// A CUDA build for other architectures than 90a.
#include "kernels/cuda/layer_stack.h"

namespace minisgl::cuda {

std::unique_ptr<LayerStack> make_layer_stack(const StackedLayers&, const StepSlots&, const cudaDeviceProp&,
                                             cudaStream_t) {
  return nullptr;
}

}  // namespace minisgl::cuda
