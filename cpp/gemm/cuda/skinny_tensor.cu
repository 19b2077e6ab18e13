// Products of 1 to 16 rows of a user's bf16 or f16 tensors. A kernel before may have written the weights as well as x,
// so of the weights only the second-level cache hears before that kernel is done.
#include "gemm/cuda/skinny.cuh"
#include "gemm/cuda/tensor_launch.h"

namespace minisgl::cuda {
namespace {

constexpr std::int64_t kMostElements = 1 << 30;  // of a row or a column: what the kernel counts in fits an int

template <typename T, int row_blocks, int depth>
__global__ void __launch_bounds__(skinny::kThreads, 2)
    skinny_tensor_kernel(const skinny::SkinnyKernelArgs<T, T> args, int prefetched) {
  skinny::skinny_product<SkinnyOutput::plain, false, row_blocks, false, depth>(args, prefetched);
}

template <typename T, int row_blocks, int depth>
void launch(const TensorProduct& product, const SkinnyTuning& tuning, cudaStream_t stream) {
  const auto kernel = skinny_tensor_kernel<T, row_blocks, depth>;
  using Shape = skinny::SkinnyShape<row_blocks, depth>;
  skinny::allow_shared_memory<Shape>(kernel);
  const skinny::SkinnyGrid grid =
      skinny::grid_of<Shape>(product.outputs, product.inputs, skinny::kTileRows, tuning.blocks_per_processor);
  launch_kernel(kernel, dim3(static_cast<unsigned>(grid.blocks)), skinny::kThreads, grid.bytes, stream,
                skinny::SkinnyKernelArgs<T, T>{.weights = static_cast<const T*>(product.weights),
                                               .bias = static_cast<const T*>(product.bias),
                                               .x = static_cast<const T*>(product.x),
                                               .norm = nullptr,
                                               .eps = 0.0f,
                                               .y = product.y,
                                               .stages = grid.stages,
                                               .rows = static_cast<int>(product.rows),
                                               .inputs = static_cast<int>(product.inputs),
                                               .outputs = static_cast<int>(product.outputs)},
                tuning.prefetches ? grid.stages : 0);
}

template <typename T, int row_blocks>
void launch_depth(const TensorProduct& product, const SkinnyTuning& tuning, cudaStream_t stream) {
  if (tuning.deep) {
    launch<T, row_blocks, 2>(product, tuning, stream);
  } else {
    launch<T, row_blocks, 1>(product, tuning, stream);
  }
}

template <typename T>
void launch_rows(const TensorProduct& product, const SkinnyTuning& tuning, cudaStream_t stream) {
  if (product.rows <= 8) {
    launch_depth<T, 1>(product, tuning, stream);
  } else {
    launch_depth<T, 2>(product, tuning, stream);
  }
}

}  // namespace

bool skinny_tensor_gemm_fits(const TensorProduct& product) {
  const auto address = reinterpret_cast<std::uintptr_t>(product.weights) | reinterpret_cast<std::uintptr_t>(product.x);
  return product.dtype != DType::f32 && skinny_gemm_fits(WeightFormat::bf16, product.rows, product.inputs) &&
         address % 16 == 0 && product.inputs <= kMostElements && product.outputs <= kMostElements;
}

void skinny_tensor_gemm(const TensorProduct& product, const SkinnyTuning& tuning, cudaStream_t stream) {
  MINISGL_CHECK(skinny_tensor_gemm_fits(product), product.rows, " rows of ", product.inputs);
  if (product.dtype == DType::bf16) {
    launch_rows<bf16>(product, tuning, stream);
  } else {
    launch_rows<half>(product, tuning, stream);
  }
}

}  // namespace minisgl::cuda
