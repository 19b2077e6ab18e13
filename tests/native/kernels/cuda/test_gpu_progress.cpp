// What a GPU's device measures counts as progress of the rank that it is part of by then.
#include <memory>
#include <vector>

#include "kernels/devices.h"

namespace minisgl::testing_support {
namespace {

TEST(GpuProgress, GrowsWhileProductsAreMeasured) {
  if (num_gpus() == 0) GTEST_SKIP() << "no CUDA device";
  const auto device = make_cuda_device(0, 2);  // no folder: its choices are measured here
  const auto progress = std::make_shared<Progress>();
  device->pool().report_to(progress);
  constexpr std::int64_t rows = 200, outputs = 192, inputs = 320;
  std::vector<Projection> projections;
  const std::vector<float> weights(outputs * inputs, 0.5f);
  projections.push_back({device->make_matrix(DType::bf16, outputs, inputs, stored(DType::bf16, weights)), {}});
  const auto linear = device->make_linear(std::move(projections));
  const DeviceBuffer x = device->allocate(rows * inputs * 2), y = device->allocate(rows * outputs * 2);
  const std::uint64_t before = progress->done();
  device->linear(*linear, Tensor{x.data(), DType::bf16, rows, inputs}, Tensor{y.data(), DType::bf16, rows, outputs});
  device->synchronize();
  EXPECT_GT(progress->done(), before);
}

}  // namespace
}  // namespace minisgl::testing_support
