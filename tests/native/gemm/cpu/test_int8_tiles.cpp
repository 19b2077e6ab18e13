// The tile kernels of block formats on computed registers, held bit by bit against the kernels without tiles.
#if defined(__x86_64__)
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "gemm/cpu/computed_int8_rows.h"
#include "gemm/dispatch.h"
#include "gemm/products.h"

namespace minisgl {
namespace {

// [num_rows, outputs], with something beside it that must stay.
std::vector<float> multiply_by_tiles(const PackedMatrix& weight, const std::vector<ActivationBlock>& blocks,
                                     std::int64_t num_rows, const float* bias) {
  const std::int64_t stride = weight.rows() + 3, row_blocks = weight.cols() / 32;
  std::vector<float> y(static_cast<std::size_t>(num_rows * stride), 1234.0f), result;
  const KernelArgs args{
      .weights = weight.data(),
      .cols = weight.cols(),
      .num_outputs = weight.rows(),
      .bias = bias,
      .activations = reinterpret_cast<const std::byte*>(blocks.data()),
      .activation_stride = row_blocks * static_cast<std::int64_t>(sizeof(ActivationBlock)),
      .num_rows = num_rows,
      .y = y.data(),
      .y_stride = stride,
  };
  EXPECT_TRUE(run_int8_rows_on_computed_tiles(weight.dtype(), args));
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const auto first = y.begin() + row * stride;
    result.insert(result.end(), first, first + weight.rows());
    EXPECT_EQ(std::vector<float>(first + weight.rows(), first + stride), std::vector<float>(3, 1234.0f));
  }
  return result;
}

TEST(Int8Tiles, GiveTheBitsOfTheOtherKernels) {
  if (std::ranges::find(supported_base_isas(), CpuIsa::avx512vnni) == supported_base_isas().end())
    GTEST_SKIP() << "this processor has no AVX-512 VNNI";
  ThreadPool pool(2);
  GemmWorkspace workspace;
  const KernelTable& table = gemm_kernel_table(CpuIsa::avx512vnni);
  for (DType dtype : all_dtypes) {
    if (!is_quantized(dtype)) continue;
    for (std::int64_t cols : {32, 256, 544, 768}) {
      if (cols % dtype_info(dtype).block_size != 0) continue;
      for (std::int64_t outputs : {1, 16, 41, 290}) {
        const RandomMatrix weight(dtype, outputs, cols, pool);
        const std::vector<float> bias = random_activations(outputs, 3);
        for (std::int64_t rows : {1, 16, 17, 131}) {
          const std::vector<float> x = random_activations(rows * cols, 2);
          std::vector<ActivationBlock> blocks(static_cast<std::size_t>(rows * cols / 32));
          table.quantize(x.data(), rows * cols, blocks.data());
          std::vector<float> expected(static_cast<std::size_t>(rows * outputs));
          const GemmPart part{&weight.packed, bias.data(), 0};
          gemm_with(table,
                    {.parts = {&part, 1}, .x = x.data(), .num_rows = rows, .y = expected.data(), .y_stride = outputs},
                    workspace, pool);
          const std::vector<float> y = multiply_by_tiles(weight.packed, blocks, rows, bias.data());
          ASSERT_EQ(std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)), 0)
              << dtype_info(dtype).name << ", " << rows << " rows, " << outputs << " outputs, " << cols << " columns";
        }
      }
    }
  }
}

}  // namespace
}  // namespace minisgl
#endif
