// The CPU as a device.
#pragma once

#include <memory>

#include "kernels/ops.h"

namespace minisgl {

// f32 activations; products with quantised weights quantise their input (gemm/gemm.h).
std::unique_ptr<Ops> make_cpu_ops(int num_threads);

}  // namespace minisgl
