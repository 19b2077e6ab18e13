// The kernels of this instruction set, as the files in this folder define them and table.cpp lists them.
#pragma once

#include "core/simd.h"
#include "kernels/cpu/kernel_table.h"

namespace minisgl::MINISGL_ISA {

void rms_norm(const float* x, const float* weight, float eps, std::int64_t dim, float* y);
void add_rms_norm(float* residual, const float* delta, const float* weight, float eps, std::int64_t dim, float* y);
void layer_norm(const float* x, const float* weight, float eps, std::int64_t dim, float* y);
float square_sum(const float* x, std::int64_t dim);
void silu_mul(const float* gate, const float* up, std::int64_t dim, float* y);
void gelu_mul(const float* gate, const float* up, std::int64_t dim, float* y);
void clamped_silu_mul(const float* gate, const float* up, std::int64_t dim, float* y);
void scale_and_cap(float* x, std::int64_t dim, float scale, float cap);
void rope(float* head, const float* cos_sin, int rotary_dim);
void convert(const float* x, std::int64_t size, DType dtype, std::byte* out);
float quantize_head(const float* x, std::int64_t size, std::byte* out);

void attention_range(const AttentionBlock& block, std::int32_t range, const AttentionState& state);
void attention_merge(const AttentionState& total, const AttentionState& range, int num_queries, int head_dim);
void attention_finish(const AttentionState& total, int num_queries, int head_dim, float* out);

void logit_block_max(const float* x, std::int64_t size, float* block_max);
void logit_weights(const float* x, std::int64_t size, float max, float scale, float* weights, float* block_sum);

void low_rank_down(const LowRankDown& args);
void low_rank_up(const LowRankUp& args);

}  // namespace minisgl::MINISGL_ISA
