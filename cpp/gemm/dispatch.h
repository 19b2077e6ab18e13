// The dispatch below gemm(): kernels of a given instruction set. gemm() calls it with the process's own; tests and
// benchmarks compare the others.
#pragma once

#include "gemm/gemm.h"
#include "gemm/kernel.h"

namespace minisgl {

// Kernels of an instruction set that this build has; whether the processor can run them is the caller's to know.
const KernelTable& gemm_kernel_table(CpuIsa isa);

// The kernel that multiplies `num_rows` rows by weights of `dtype`.
const Kernel& find_gemm_kernel(const KernelTable& table, DType dtype, std::int64_t num_rows);

void gemm_with(const KernelTable& table, const GemmArgs& args, GemmWorkspace& workspace, ThreadPool& pool);

}  // namespace minisgl
