// Sums over ranks on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/cpu_features.h"
#include "core/dtype.h"

namespace minisgl {

// out[i] = inputs[0][i] + inputs[1][i] + ..., in this order, in f32, rounded once. [count] f32, f16 or bf16. `out` may
// be one of the inputs. The kernels of all instruction sets give the same bits.
using SumKernel = void (*)(const void* const* inputs, int num_inputs, std::int64_t count, DType dtype, void* out);

SumKernel sum_kernel(CpuIsa isa);
inline SumKernel sum_kernel() {
  return sum_kernel(cpu_isa());
}

}  // namespace minisgl
