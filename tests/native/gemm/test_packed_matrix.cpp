// Packing keeps every weight: a row read back has exactly the values that the format defines.
#include <gtest/gtest.h>

#include "core/error.h"
#include "gemm/packed_matrix.h"
#include "reference.h"

namespace minisgl {
namespace {

class PackedMatrixTest : public testing::TestWithParam<DType> {};

TEST_P(PackedMatrixTest, RowsReadBackAreTheFormatsValues) {
  const DType dtype = GetParam();
  ThreadPool pool(2);
  for (std::int64_t rows : {1, 8, 13}) {
    for (std::int64_t blocks : {1, 3}) {
      const std::int64_t cols = blocks * dtype_info(dtype).block_size;
      const std::vector<std::uint8_t> file = reference::random_weights(dtype, rows, cols, 7);
      const PackedMatrix matrix = PackedMatrix::pack(dtype, rows, cols, std::as_bytes(std::span(file)), pool);
      EXPECT_EQ(matrix.rows(), rows);
      EXPECT_EQ(matrix.cols(), cols);
      EXPECT_EQ(matrix.dtype(), dtype);
      const std::vector<double> values = reference::values(dtype, file, rows, cols);
      std::vector<float> row(static_cast<std::size_t>(cols));
      for (std::int64_t r = 0; r < rows; ++r) {
        matrix.dequantize_row(r, row.data());
        for (std::int64_t c = 0; c < cols; ++c)  // the definition rounds to f32 once
          ASSERT_EQ(row[static_cast<std::size_t>(c)],
                    static_cast<float>(values[static_cast<std::size_t>(r * cols + c)]));
      }
    }
  }
}

TEST_P(PackedMatrixTest, WrongSizesAreRefused) {
  const DType dtype = GetParam();
  const DTypeInfo info = dtype_info(dtype);
  ThreadPool pool(1);
  std::vector<std::byte> file(static_cast<std::size_t>(4 * info.block_bytes));
  EXPECT_THROW(PackedMatrix::pack(dtype, 3, info.block_size, file, pool), CheckError);
  EXPECT_THROW(PackedMatrix::pack(dtype, -1, info.block_size, file, pool), CheckError);
  if (info.block_size > 1) {
    EXPECT_THROW(PackedMatrix::pack(dtype, 4, info.block_size - 1, file, pool), CheckError);
  }
  const PackedMatrix matrix = PackedMatrix::pack(dtype, 4, info.block_size, file, pool);
  std::vector<float> row(static_cast<std::size_t>(info.block_size));
  EXPECT_THROW(matrix.dequantize_row(4, row.data()), CheckError);
  EXPECT_THROW(matrix.dequantize_row(-1, row.data()), CheckError);
}

INSTANTIATE_TEST_SUITE_P(Formats, PackedMatrixTest, testing::ValuesIn(all_dtypes),
                         [](const testing::TestParamInfo<DType>& info) {
                           return std::string(dtype_info(info.param).name);
                         });

}  // namespace
}  // namespace minisgl
