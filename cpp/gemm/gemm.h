// y = x · Wᵀ (+ bias) on the CPU: the one entry to its matrix products. A descriptor in, a kernel out.
//
// A row's result is a function of that row and the weights alone: the same bits for any number of rows beside it,
// any number of threads, any cut of the work. Kernels keep that by one rule: each output element is accumulated
// over the input dimension in one fixed order.
#pragma once

#include <cstdint>
#include <span>

#include "core/aligned_buffer.h"
#include "core/dtype.h"
#include "core/thread_pool.h"
#include "gemm/layout.h"
#include "gemm/packed_matrix.h"

namespace minisgl {

// Scratch that outlives a call, so that steps do not allocate.
struct GemmWorkspace {
  AlignedBuffer parts;        // how each part is cut
  AlignedBuffer activations;  // quantised
  AlignedBuffer widened;      // activations as f32, where they are given as f16 or bf16
  AlignedBuffer outputs;      // f32, where y is f16 or bf16
};

// One of several matrices that read the same input and write side by side (merged Q/K/V, gate/up), or that read and
// write rows of their own (experts).
struct GemmPart {
  const PackedMatrix* weight;  // [out_features, in_features]
  const float* bias;           // [out_features] or null
  std::int64_t column;         // first column of y that this part writes
  std::int64_t first_row = 0;  // of x and y
  std::int64_t num_rows = kAllRows;
  static constexpr std::int64_t kAllRows = -1;
};

struct GemmArgs {
  std::span<const GemmPart> parts;  // all with the same in_features; no two write the same elements of y
  const void* x;                    // [num_rows, in_features] of x_dtype, rows contiguous
  std::int64_t num_rows;
  void* y;                                     // [num_rows, y_stride] of y_dtype
  std::int64_t y_stride;                       // elements
  const ActivationBlock* quantized = nullptr;  // [num_rows, in_features / 32] quantize_row() of x where that is done
  DType x_dtype = DType::f32;                  // f32, f16 or bf16
  DType y_dtype = DType::f32;                  // f32, f16 or bf16
};

// Activations are quantised to int8 in blocks of 32 for the quantised formats; for the others they are f32, f16 and
// bf16 ones widened. Where the instruction set multiplies bf16 by bf16, bf16 rows meet bf16 weights as they are; it
// takes subnormal inputs and results for zeros. Sums are f32, rounded once where y is f16 or bf16: to nearest, ties to
// even.
void gemm(const GemmArgs& args, GemmWorkspace& workspace, ThreadPool& pool);

// What gemm() makes of a row of `cols` (a multiple of 32) values for the quantised formats. An
// operation that has the row at hand calls it.
void quantize_row(const float* x, std::int64_t cols, ActivationBlock* blocks);

// Name of the instruction set that the kernels were chosen for: "amx", "avx512bf16", "avx512vnni",
// "avx2", "dotprod" (aarch64), "portable".
// The environment variable MINISGL_CPU_ISA, read once, asks for a lesser one (tests compare them).
const char* cpu_isa_name();

}  // namespace minisgl
