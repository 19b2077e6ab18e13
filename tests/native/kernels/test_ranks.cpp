// Operations between ranks: CPU devices on threads of their own, and what each device does alone.
#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <thread>
#include <vector>

#include "comm/shm.h"
#include "kernels/devices.h"
#include "kernels/random_floats.h"

namespace minisgl {
namespace {

using testing_support::device_label;
using testing_support::device_of;
using testing_support::DeviceKind;
using testing_support::DeviceMatrix;
using testing_support::rounded;
using testing_support::stored;

void on_ranks(int num_ranks, const std::function<void(Device&)>& function) {
  std::vector<std::thread> threads;
  for (auto& communicator : make_shm_communicators(num_ranks)) {
    threads.emplace_back([&function, communicator = std::move(communicator)]() mutable {
      const auto device = make_cpu_device(1, std::move(communicator));
      function(*device);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

class Ranks : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(All, Ranks, testing::Values(1, 2, 3, 4, 8));

TEST_P(Ranks, DeltasAreSummedBeforeTheyAreAdded) {
  const int num_ranks = GetParam();
  constexpr std::int64_t rows = 3, cols = 40;
  const std::vector<float> residual = random_floats(rows * cols, 1), weight = random_floats(cols, 2);
  std::vector<float> sum(rows * cols, 0.0f);
  for (int rank = 0; rank < num_ranks; ++rank) {
    const std::vector<float> delta = random_floats(rows * cols, 10 + rank);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += delta[i];
  }
  const auto alone = make_cpu_device(1);
  const DeviceMatrix x(*alone, DType::f32, rows, cols, residual), added(*alone, DType::f32, rows, cols, sum);
  const DeviceMatrix expected(*alone, DType::f32, rows, cols);
  alone->reduce_add_rms_norm(x.view(), added.view(), {weight.data(), 1e-5f}, expected.view());

  std::vector<std::vector<float>> residuals(num_ranks), results(num_ranks);
  on_ranks(num_ranks, [&](Device& device) {
    const DeviceMatrix mine(device, DType::f32, rows, cols, residual);
    const DeviceMatrix delta(device, DType::f32, rows, cols, random_floats(rows * cols, 10 + device.rank()));
    const DeviceMatrix y(device, DType::f32, rows, cols);
    device.reduce_add_rms_norm(mine.view(), delta.view(), {weight.data(), 1e-5f}, y.view());
    residuals[device.rank()] = mine.values();
    results[device.rank()] = y.values();
  });
  for (int rank = 0; rank < num_ranks; ++rank) {
    EXPECT_EQ(residuals[rank], residuals[0]);
    EXPECT_EQ(results[rank], results[0]);
    for (std::size_t i = 0; i < sum.size(); ++i) {
      ASSERT_NEAR(residuals[rank][i], x.values()[i], 1e-5);
      ASSERT_NEAR(results[rank][i], expected.values()[i], 1e-5);
    }
  }
}

TEST_P(Ranks, ColumnsAreGatheredInTheOrderOfRanks) {
  const int num_ranks = GetParam();
  constexpr std::int64_t rows = 5, part_cols = 8;
  const std::int64_t cols = num_ranks * part_cols - 3;
  std::vector<float> expected(rows * cols);
  std::iota(expected.begin(), expected.end(), 1.0f);
  std::vector<std::vector<float>> results(num_ranks);
  on_ranks(num_ranks, [&](Device& device) {
    std::vector<float> mine(rows * part_cols, -1.0f);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t i = 0; i < part_cols; ++i) {
        const std::int64_t col = device.rank() * part_cols + i;
        if (col < cols) mine[row * part_cols + i] = expected[row * cols + col];
      }
    }
    const DeviceMatrix part(device, DType::f32, rows, part_cols, mine), y(device, DType::f32, rows, cols);
    const DeviceMatrix scratch(device, DType::f32, num_ranks * rows, part_cols);
    device.gather_columns(part.view(), scratch.view(), y.view());
    results[device.rank()] = y.values();
  });
  for (const std::vector<float>& result : results) EXPECT_EQ(result, expected);
}

class EveryDevice : public testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override { MINISGL_SKIP_WITHOUT(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(All, EveryDevice, testing::Values(DeviceKind::cpu, DeviceKind::cuda),
                         [](const auto& info) { return device_label(info.param); });

TEST_P(EveryDevice, TokensOfOtherRanksBecomeZeros) {
  Device& device = *device_of(GetParam());
  const DType dtype = device.activation_dtype();
  for (const std::int64_t cols : {7, 64}) {
    const std::vector<float> table = rounded(dtype, random_floats(4 * cols, 3));
    const auto matrix = device.make_matrix(dtype, 4, cols, stored(dtype, table));
    const std::vector<std::int32_t> tokens{9, 10, 13, 14, 0}, positions{0, 1, 2, 3, 4}, pages{0};
    const ops::SequenceRows sequence{0, 5, 0, pages.data()};
    device.begin_step({tokens, positions, {&sequence, 1}, {}, 16}, {});
    const DeviceMatrix y(device, dtype, 5, cols);
    device.embed(*matrix, 10, y.view());  // tokens 10 to 13
    std::vector<float> expected(5 * cols, 0.0f);
    std::copy_n(table.begin(), cols, expected.begin() + cols);
    std::copy_n(table.begin() + 3 * cols, cols, expected.begin() + 2 * cols);
    EXPECT_EQ(y.values(), expected);
  }
}

TEST_P(EveryDevice, OneRankGathersItsOwnColumns) {
  Device& device = *device_of(GetParam());
  const std::vector<float> values = random_floats(3 * 600, 4);
  const DeviceMatrix part(device, DType::f32, 3, 600, values), y(device, DType::f32, 3, 599);
  device.gather_columns(part.view(), Tensor{}, y.view());
  std::vector<float> expected;
  for (int row = 0; row < 3; ++row) {
    expected.insert(expected.end(), values.begin() + row * 600, values.begin() + row * 600 + 599);
  }
  EXPECT_EQ(y.values(), expected);
}

}  // namespace
}  // namespace minisgl
