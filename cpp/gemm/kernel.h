// What a GEMM kernel is: a function over some groups of output rows and some rows of activations, and the table of them
// that each instruction set brings. Kernel files include this: no inline functions here (core/simd.h says why).
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/cpu_features.h"
#include "core/dtype.h"
#include "gemm/layout.h"

namespace minisgl {

struct KernelArgs {
  const std::byte* weights;        // the first group, in the packed layout (gemm/layout.h)
  std::int64_t cols;               // input features
  std::int64_t num_outputs;        // output features from the first group on; its groups are ceil(num_outputs / 8)
  const float* bias;               // [num_outputs] or null
  const std::byte* activations;    // the first row: ActivationBlocks for the quantised formats, else f32, or bf16 where
                                   // the kernel reads that
  std::int64_t activation_stride;  // bytes from a row to the next
  std::int64_t num_rows;
  float* y;  // [num_rows, num_outputs]
  std::int64_t y_stride;
};

struct Kernel {
  DType dtype;
  std::int64_t min_rows;  // the kernel of a format with the greatest min_rows <= num_rows runs
  void (*run)(const KernelArgs& args);
  // What a task has at most: rows whose activations stay in the second-level cache, as do these weights, which are read
  // again for each tile of rows; and groups of outputs in multiples of what the kernel takes at once.
  std::int64_t task_rows = 64;
  std::int64_t task_weight_bytes = 64 << 10;
  std::int64_t tile_groups = 4;
};

// Quantises one row of `cols` (a multiple of 32) values to cols / 32 blocks.
using QuantizeFunction = void (*)(const float* x, std::int64_t cols, ActivationBlock* blocks);

// `count` values of f16 or bf16 to f32, and back: to nearest, ties to even.
using WidenFunction = void (*)(const std::byte* x, DType dtype, std::int64_t count, float* out);
using RoundFunction = void (*)(const float* x, DType dtype, std::int64_t count, std::byte* out);

struct KernelTable {
  CpuIsa isa;
  const Kernel* kernels;
  int num_kernels;
  QuantizeFunction quantize;
  WidenFunction widen;
  RoundFunction round;
  void (*bf16_rows)(const KernelArgs& args) = nullptr;  // bf16 activations by bf16 weights, any number of rows
  const Kernel* more_kernels = nullptr;
  int num_more_kernels = 0;
};

// What an instruction set adds to the table of another.
struct MoreKernels {
  void (*bf16_rows)(const KernelArgs& args);
  const Kernel* kernels = nullptr;
  int num_kernels = 0;
};

// Data, not functions: nothing of an instruction set runs before it is chosen.
#define MINISGL_DECLARE_TABLE(isa)       \
  namespace isa {                        \
  extern const KernelTable gemm_kernels; \
  }
MINISGL_FOR_EACH_ISA(MINISGL_DECLARE_TABLE)
#undef MINISGL_DECLARE_TABLE

#define MINISGL_DECLARE_MORE_KERNELS(isa)     \
  namespace isa {                             \
  extern const MoreKernels more_gemm_kernels; \
  }
MINISGL_FOR_EACH_MORE_ISA(MINISGL_DECLARE_MORE_KERNELS)
#undef MINISGL_DECLARE_MORE_KERNELS

}  // namespace minisgl
