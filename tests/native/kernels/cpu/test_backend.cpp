// What operations leave quantised for a linear is what the linear would have made itself.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "kernels/cpu/backend.h"
#include "kernels/random_floats.h"

namespace minisgl {
namespace {

constexpr std::int64_t kRows = 5, kCols = 64, kOutputs = 24;

class CpuBackend : public testing::Test {
 protected:
  Tensor tensor(std::int64_t cols, unsigned seed) {
    buffers_.push_back(device->allocate(static_cast<std::size_t>(kRows * cols) * sizeof(float)));
    const std::vector<float> values = random_floats(kRows * cols, seed);
    device->upload(std::as_bytes(std::span(values)), buffers_.back().data());
    return {buffers_.back().data(), DType::f32, kRows, cols};
  }
  std::vector<float> product(const LinearInput& x) {
    const Tensor y = tensor(kOutputs, 98);
    device->linear(*linear, x, y);
    return {y.f32(), y.f32() + kRows * kOutputs};
  }

  const std::unique_ptr<Device> device = make_cpu_device(2);
  // Bytes of 0x11 are small scales and small weights in Q8_0.
  const std::vector<std::byte> file = std::vector<std::byte>(kOutputs * (kCols / 32) * 34, std::byte{0x11});
  const std::unique_ptr<const Linear> linear = [this] {
    std::vector<Projection> outputs;
    outputs.push_back({device->make_matrix(DType::q8_0, kOutputs, kCols, file), {}});
    return device->make_linear(std::move(outputs));
  }();

 private:
  std::vector<DeviceBuffer> buffers_;
};

TEST_F(CpuBackend, NormsLeaveTheRowsThatALinearWouldQuantize) {
  const std::vector<float> weight = random_floats(kCols, 1);
  const Tensor x = tensor(kCols, 2), delta = tensor(kCols, 3), y = tensor(kCols, 4);
  const Norm norm{weight.data(), 1e-5f};
  LinearInput normed = device->rms_norm(x, norm, y);
  EXPECT_EQ(product(normed), product(y));
  normed = device->reduce_add_rms_norm(x, delta, norm, y);
  EXPECT_EQ(product(normed), product(y));
}

TEST_F(CpuBackend, ALinearQuantizesAgainWhatAnotherOperationReplaced) {
  const std::vector<float> weight = random_floats(kCols, 1);
  const Norm norm{weight.data(), 1e-5f};
  const Tensor x = tensor(kCols, 2), y = tensor(kCols, 3), z = tensor(kCols, 4);
  const LinearInput first = device->rms_norm(x, norm, y);
  const std::vector<float> expected = product(first);
  device->rms_norm(tensor(kCols, 5), norm, z);
  EXPECT_EQ(product(first), expected);
}

TEST_F(CpuBackend, ALinearOfAnotherTensorReadsThatOne) {
  const std::vector<float> weight = random_floats(kCols, 1);
  const Tensor x = tensor(kCols, 2), y = tensor(kCols, 3), other = tensor(kCols, 4);
  const std::vector<float> before = product(other);
  const LinearInput normed = device->rms_norm(x, {weight.data(), 1e-5f}, y);
  EXPECT_EQ(product(other), before);
  EXPECT_NE(product(normed), before);
}

}  // namespace
}  // namespace minisgl
