// Every kernel of this instruction set; gemm/cpu/isa/kernel_table.cpp lists them for the dispatch.
#pragma once

#include "core/simd.h"
#include "gemm/kernel.h"
#include "gemm/layout.h"

namespace minisgl::MINISGL_ISA {

void gemm_f32_one_row(const KernelArgs& args);
void gemm_f32(const KernelArgs& args);
void gemm_f16_one_row(const KernelArgs& args);
void gemm_f16(const KernelArgs& args);
void gemm_bf16_one_row(const KernelArgs& args);
void gemm_bf16(const KernelArgs& args);
void gemm_q8_0_one_row(const KernelArgs& args);
void gemm_q8_0(const KernelArgs& args);
void gemm_q4_0_one_row(const KernelArgs& args);
void gemm_q4_0(const KernelArgs& args);
void gemm_q4_1_one_row(const KernelArgs& args);
void gemm_q4_1(const KernelArgs& args);
void gemm_q4_k_one_row(const KernelArgs& args);
void gemm_q4_k(const KernelArgs& args);
void gemm_q6_k_one_row(const KernelArgs& args);
void gemm_q6_k(const KernelArgs& args);
void gemm_q5_0_one_row(const KernelArgs& args);
void gemm_q5_0(const KernelArgs& args);
void gemm_q5_1_one_row(const KernelArgs& args);
void gemm_q5_1(const KernelArgs& args);
void gemm_q5_k_one_row(const KernelArgs& args);
void gemm_q5_k(const KernelArgs& args);
void gemm_q2_k_one_row(const KernelArgs& args);
void gemm_q2_k(const KernelArgs& args);
void gemm_q3_k_one_row(const KernelArgs& args);
void gemm_q3_k(const KernelArgs& args);
void gemm_iq4_nl_one_row(const KernelArgs& args);
void gemm_iq4_nl(const KernelArgs& args);
void gemm_iq4_xs_one_row(const KernelArgs& args);
void gemm_iq4_xs(const KernelArgs& args);
void gemm_mxfp4_one_row(const KernelArgs& args);
void gemm_mxfp4(const KernelArgs& args);

void quantize_activations(const float* x, std::int64_t cols, ActivationBlock* blocks);
void widen_values(const std::byte* x, DType dtype, std::int64_t count, float* out);
void round_values(const float* x, DType dtype, std::int64_t count, std::byte* out);

}  // namespace minisgl::MINISGL_ISA
