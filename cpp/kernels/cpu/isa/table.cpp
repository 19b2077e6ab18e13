// This instruction set's row of function pointers.
#include "kernels/cpu/isa/kernels.h"

namespace minisgl::MINISGL_ISA {

extern const CpuKernels kernels;
const CpuKernels kernels = {
    .rms_norm = rms_norm,
    .add_rms_norm = add_rms_norm,
    .layer_norm = layer_norm,
    .square_sum = square_sum,
    .silu_mul = silu_mul,
    .gelu_mul = gelu_mul,
    .clamped_silu_mul = clamped_silu_mul,
    .scale_and_cap = scale_and_cap,
    .rope = rope,
    .convert = convert,
    .quantize_head = quantize_head,
    .attention_range = attention_range,
    .attention_merge = attention_merge,
    .attention_finish = attention_finish,
    .logit_block_max = logit_block_max,
    .logit_weights = logit_weights,
    .low_rank_down = low_rank_down,
    .low_rank_up = low_rank_up,
};

}  // namespace minisgl::MINISGL_ISA
