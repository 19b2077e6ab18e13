// Names of devices.
#include <gtest/gtest.h>

#include <memory>
#include <string>

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

// Of two ranks; promises no order of its sums, as NCCL doesn't.
class AnyOrder final : public Communicator {
 public:
  std::string name() const override { return "any order"; }
  int rank() const override { return 0; }
  int size() const override { return 2; }
  int device() const override { return -1; }
  void all_reduce_sum(void*, std::int64_t, DType, StreamHandle) override {}
  void all_gather(const void*, void*, std::int64_t, StreamHandle) override {}
  void reduce_scatter_sum(const void*, void*, std::int64_t, DType, StreamHandle) override {}
  void broadcast(void*, std::int64_t, int, StreamHandle) override {}
  void barrier(StreamHandle) override {}
};

TEST(Device, IsDeterministicOnlyWhereSumsAre) {
  EXPECT_EQ(make_device("cpu", 1, std::make_shared<AnyOrder>())->num_ranks(), 2);
  testing::expect_input_error([] { return make_device("cpu", 1, std::make_shared<AnyOrder>(), "", true); },
                              "--deterministic needs sums in the order of ranks, which any order doesn't promise; use "
                              "--comm auto");
  EXPECT_EQ(make_device("cpu", 1, nullptr, "", true)->num_ranks(), 1);
}

TEST(Device, RefusesWhatIsNotThere) {
  testing::expect_input_error([] { return make_device("gpu", 1); }, "--device must be auto, cpu or cuda, got gpu");
  if (num_gpus() == 0) {
    EXPECT_THROW(make_device("cuda", 1), InputError);
  }
}

}  // namespace
}  // namespace minisgl
