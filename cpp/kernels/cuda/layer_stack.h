// All layers of a step of few rows in one kernel.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "kernels/cuda/step_slots.h"
#include "kernels/layer_stack.h"

namespace minisgl::cuda {

// Null where there is no kernel for these layers, or on this GPU. Everything is queued on `stream`; the step at hand
// is the slots'.
std::unique_ptr<LayerStack> make_layer_stack(const StackedLayers& layers, const StepSlots& slots,
                                             const cudaDeviceProp& properties, cudaStream_t stream);

}  // namespace minisgl::cuda
