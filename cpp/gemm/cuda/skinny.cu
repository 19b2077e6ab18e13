// The engine's products of 1 to 16 rows: bf16 weights that no step writes, f32 biases, norms and what becomes of the
// sums.
#include "gemm/cuda/quantised.h"
#include "gemm/cuda/skinny.cuh"

namespace minisgl::cuda {
namespace {

using KernelArgs = skinny::SkinnyKernelArgs<bf16, float>;

template <SkinnyOutput output, bool normed, int row_blocks>
__global__ void __launch_bounds__(skinny::kThreads, 2) skinny_kernel(const KernelArgs args) {
  skinny::skinny_product<output, normed, row_blocks, true, 1>(args, 0);
}

template <SkinnyOutput output, bool normed, int row_blocks>
void launch(const SkinnyArgs& args, cudaStream_t stream) {
  constexpr int tile_outputs = output == SkinnyOutput::gated ? skinny::kTileRows / 2 : skinny::kTileRows;
  const auto kernel = skinny_kernel<output, normed, row_blocks>;
  using Shape = skinny::SkinnyShape<row_blocks>;
  skinny::allow_shared_memory<Shape>(kernel);
  const skinny::SkinnyGrid grid = skinny::grid_of<Shape>(args.outputs, args.inputs, tile_outputs, 1);
  launch_kernel(kernel, dim3(static_cast<unsigned>(grid.blocks)), skinny::kThreads, grid.bytes, stream,
                KernelArgs{.weights = static_cast<const bf16*>(args.weights.data),
                           .bias = args.bias,
                           .x = static_cast<const bf16*>(args.x),
                           .norm = args.norm,
                           .eps = args.eps,
                           .y = args.y,
                           .stages = grid.stages,
                           .rows = static_cast<int>(args.rows),
                           .inputs = static_cast<int>(args.inputs),
                           .outputs = static_cast<int>(args.outputs)});
}

template <SkinnyOutput output, bool normed>
void launch_rows(const SkinnyArgs& args, cudaStream_t stream) {
  if (args.rows <= 8) {
    launch<output, normed, 1>(args, stream);
  } else {
    launch<output, normed, 2>(args, stream);
  }
}

template <SkinnyOutput output>
void launch_normed(const SkinnyArgs& args, cudaStream_t stream) {
  if (args.norm != nullptr) {
    launch_rows<output, true>(args, stream);
  } else {
    launch_rows<output, false>(args, stream);
  }
}

}  // namespace

bool skinny_gemm_fits(WeightFormat format, std::int64_t rows, std::int64_t inputs) {
  return rows >= 1 && rows <= most_skinny_rows(format) && inputs % 8 == 0 &&
         (!is_quantised(format) || inputs <= kMostQuantisedInputs);
}

void skinny_gemm(const SkinnyArgs& args, cudaStream_t stream) {
  MINISGL_CHECK(skinny_gemm_fits(args.weights.format, args.rows, args.inputs), args.rows, " rows of ", args.inputs);
  MINISGL_CHECK(args.output != SkinnyOutput::added || args.norm == nullptr, "a norm before a sum");
  if (is_quantised(args.weights.format)) return quantised_row_gemm(args, stream);
  switch (args.output) {
    case SkinnyOutput::plain: return launch_normed<SkinnyOutput::plain>(args, stream);
    case SkinnyOutput::f32: return launch_normed<SkinnyOutput::f32>(args, stream);
    case SkinnyOutput::gated: return launch_normed<SkinnyOutput::gated>(args, stream);
    case SkinnyOutput::added: return launch_rows<SkinnyOutput::added, false>(args, stream);
  }
}

}  // namespace minisgl::cuda
