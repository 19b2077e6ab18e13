// The table of cuts, and cutting.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "gemm/packed_matrix.h"
#include "io/expect_input_error.h"
#include "layers/matrix_part.h"
#include "layers/sharding.h"

namespace minisgl {
namespace {

using testing::expect_input_error;

std::vector<std::int64_t> firsts(Split split, std::int64_t units, int num_ranks) {
  std::vector<std::int64_t> result;
  for (int rank = 0; rank < num_ranks; ++rank) result.push_back(rank_slice(split, units, rank, num_ranks).first);
  return result;
}

using Firsts = std::vector<std::int64_t>;

TEST(RankSlice, EvenSplits) {
  EXPECT_EQ(firsts(Split::even, 9, 3), (Firsts{0, 3, 6}));
  EXPECT_EQ(rank_slice(Split::even, 9, 1, 3).count, 3);
  EXPECT_EQ((rank_slice(Split::even, 9, 2, 3) * 64).first, 384);
  EXPECT_FALSE(can_split(Split::even, 9, 2));
  expect_input_error([] { return rank_slice(Split::even, 9, 0, 2); }, "9 can't be divided evenly by 2");
  EXPECT_THROW(rank_slice(Split::even, 9, 3, 3), CheckError);
}

TEST(RankSlice, FewerUnitsThanRanksAreShared) {
  EXPECT_EQ(firsts(Split::even_or_shared, 2, 8), (Firsts{0, 0, 0, 0, 1, 1, 1, 1}));
  EXPECT_EQ(rank_slice(Split::even_or_shared, 2, 7, 8).count, 1);
  EXPECT_EQ(firsts(Split::even_or_shared, 8, 2), (Firsts{0, 4}));
  EXPECT_EQ(firsts(Split::even_or_shared, 3, 3), (Firsts{0, 1, 2}));
  EXPECT_FALSE(can_split(Split::even_or_shared, 4, 6));
  EXPECT_FALSE(can_split(Split::even_or_shared, 6, 4));
}

TEST(RankSlice, PaddedPartsHaveOneSizeAndCoverEverything) {
  for (const std::int64_t units : {1, 7, 8, 50, 64, 65, 49152, 151936}) {
    EXPECT_EQ(rank_slice(Split::padded, units, 0, 1).count, units);
    for (const int num_ranks : {2, 3, 4, 8}) {
      const std::int64_t count = rank_slice(Split::padded, units, 0, num_ranks).count;
      EXPECT_EQ(count % 8, 0);
      EXPECT_GE(count * num_ranks, units);
      EXPECT_LT(count * num_ranks, units + 9 * num_ranks);
      for (int rank = 0; rank < num_ranks; ++rank) {
        const Slice slice = rank_slice(Split::padded, units, rank, num_ranks);
        EXPECT_EQ(slice.first, rank * count);
        EXPECT_EQ(slice.count, count);
      }
    }
  }
}

TEST(DivideEven, SaysWhatCannotBeDivided) {
  EXPECT_EQ(divide_even(12, 4), 3);
  expect_input_error([] { return divide_even(9, 4, "query heads"); }, "9 query heads can't be divided evenly by 4");
  expect_input_error([] { return divide_even(4, 0); }, "4 can't be divided evenly by 0");
}

// A matrix of the format with every byte its own, whose scales are small.
struct Whole {
  Whole(DType format, std::int64_t num_rows, std::int64_t num_cols) : dtype(format), rows(num_rows), cols(num_cols) {
    bytes.resize(static_cast<std::size_t>(rows * row_bytes(dtype, cols)));
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 37 % 61);
  }
  MatrixBytes view() const { return {dtype, rows, cols, bytes}; }
  DType dtype;
  std::int64_t rows, cols;
  std::vector<std::byte> bytes;
};

std::vector<float> values_of(DType dtype, std::int64_t rows, std::int64_t cols, std::span<const std::byte> bytes) {
  ThreadPool pool(1);
  const PackedMatrix matrix = PackedMatrix::pack(dtype, rows, cols, bytes, pool);
  std::vector<float> values(static_cast<std::size_t>(rows * cols));
  for (std::int64_t row = 0; row < rows; ++row) matrix.dequantize_row(row, values.data() + row * cols);
  return values;
}

class Formats : public ::testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(All, Formats, ::testing::ValuesIn(all_dtypes),
                         [](const auto& info) { return std::string(dtype_info(info.param).name); });

TEST_P(Formats, PartsHoldTheValuesOfTheWhole) {
  const DType dtype = GetParam();
  ThreadPool pool(2);
  const std::int64_t rows = 11, cols = 3 * dtype_info(dtype).block_size;
  const Whole whole(dtype, rows, cols);
  const std::vector<float> expected = values_of(dtype, rows, cols, whole.bytes);

  const Slice columns{cols / 3, cols / 3};
  const MatrixPart by_columns = take_part(whole.view(), Cut::columns, columns, pool);
  const std::vector<float> got = values_of(dtype, rows, columns.count, by_columns.bytes);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < columns.count; ++i)
      ASSERT_EQ(got[row * columns.count + i], expected[row * cols + columns.first + i]);
  }

  const MatrixPart by_rows = take_part(whole.view(), Cut::rows, {4, 5}, pool);
  EXPECT_EQ(by_rows.bytes.data(), whole.bytes.data() + 4 * row_bytes(dtype, cols)) << "rows are not copied";
  EXPECT_EQ(values_of(dtype, 5, cols, by_rows.bytes),
            std::vector<float>(expected.begin() + 4 * cols, expected.begin() + 9 * cols));

  const MatrixPart padded = take_part(whole.view(), Cut::rows, {8, 8}, pool);
  const std::vector<float> with_zeros = values_of(dtype, 8, cols, padded.bytes);
  EXPECT_EQ(std::vector<float>(with_zeros.begin(), with_zeros.begin() + 3 * cols),
            std::vector<float>(expected.begin() + 8 * cols, expected.end()));
  EXPECT_EQ(std::vector<float>(with_zeros.begin() + 3 * cols, with_zeros.end()), std::vector<float>(5 * cols, 0.0f));
  const MatrixPart beyond = take_part(whole.view(), Cut::rows, {16, 8}, pool);
  EXPECT_EQ(beyond.read.size(), 0u);
  EXPECT_EQ(values_of(dtype, 8, cols, beyond.bytes), std::vector<float>(8 * cols, 0.0f));
}

TEST(TakePart, ACutInsideABlockIsRefused) {
  ThreadPool pool(1);
  const Whole whole(DType::q8_0, 2, 64);
  EXPECT_THROW(take_part(whole.view(), Cut::columns, {16, 32}, pool), CheckError);
}

}  // namespace
}  // namespace minisgl
