// The kernels of this instruction set, as the dispatch sees them. A new kernel is one file and one line here.
#include "gemm/cpu/isa/kernels.h"

namespace minisgl::MINISGL_ISA {
namespace {

constexpr Kernel kernels[] = {
    {DType::f32, 1, gemm_f32_one_row},       {DType::f32, 2, gemm_f32},
    {DType::f16, 1, gemm_f16_one_row},       {DType::f16, 2, gemm_f16},
    {DType::bf16, 1, gemm_bf16_one_row},     {DType::bf16, 2, gemm_bf16},
    {DType::q8_0, 1, gemm_q8_0_one_row},     {DType::q8_0, 2, gemm_q8_0},
    {DType::q4_0, 1, gemm_q4_0_one_row},     {DType::q4_0, 2, gemm_q4_0},
    {DType::q4_1, 1, gemm_q4_1_one_row},     {DType::q4_1, 2, gemm_q4_1},
    {DType::q4_k, 1, gemm_q4_k_one_row},     {DType::q4_k, 2, gemm_q4_k},
    {DType::q6_k, 1, gemm_q6_k_one_row},     {DType::q6_k, 2, gemm_q6_k},
    {DType::q5_0, 1, gemm_q5_0_one_row},     {DType::q5_0, 2, gemm_q5_0},
    {DType::q5_1, 1, gemm_q5_1_one_row},     {DType::q5_1, 2, gemm_q5_1},
    {DType::q5_k, 1, gemm_q5_k_one_row},     {DType::q5_k, 2, gemm_q5_k},
    {DType::q2_k, 1, gemm_q2_k_one_row},     {DType::q2_k, 2, gemm_q2_k},
    {DType::q3_k, 1, gemm_q3_k_one_row},     {DType::q3_k, 2, gemm_q3_k},
    {DType::iq4_nl, 1, gemm_iq4_nl_one_row}, {DType::iq4_nl, 2, gemm_iq4_nl},
    {DType::iq4_xs, 1, gemm_iq4_xs_one_row}, {DType::iq4_xs, 2, gemm_iq4_xs},
    {DType::mxfp4, 1, gemm_mxfp4_one_row},   {DType::mxfp4, 2, gemm_mxfp4},
};

}  // namespace

constinit const KernelTable gemm_kernels = {CpuIsa::MINISGL_ISA,  kernels,      sizeof(kernels) / sizeof(kernels[0]),
                                            quantize_activations, widen_values, round_values};

}  // namespace minisgl::MINISGL_ISA
