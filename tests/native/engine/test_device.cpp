// Names of devices.
#include <gtest/gtest.h>

#include "comm/nccl.h"
#include "engine/device.h"
#include "io/expect_input_error.h"
#include "kernels/cuda/backend.h"

namespace minisgl {
namespace {

TEST(Device, TheCpuIsAlwaysThere) {
  const auto device = make_device("cpu", 2);
  EXPECT_EQ(device->device_name().substr(0, 3), "CPU");
  EXPECT_EQ(device->pool().num_threads(), 2);
  EXPECT_EQ(device->activation_dtype(), DType::f32);
}

TEST(Device, AutoIsAGpuWhereThereIsOne) {
  EXPECT_EQ(make_device("auto", 1)->activation_dtype(), num_gpus() > 0 ? DType::bf16 : DType::f32);
}

TEST(Device, RefusesWhatIsNotThere) {
  testing::expect_input_error([] { return make_device("gpu", 1); }, "--device must be auto, cpu or cuda, got gpu");
  if (num_gpus() == 0) {
    EXPECT_THROW(make_device("cuda", 1), InputError);
  }
}

}  // namespace
}  // namespace minisgl
