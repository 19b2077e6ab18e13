// The choice from times measured on a GPU, with ways that take as long as they are told to.
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <thread>

#include "comm/cuda/device_memory.h"
#include "comm/cuda/measure_sums.h"
#include "comm/nccl.h"
#include "comm/ranks.h"

namespace minisgl {
namespace {

constexpr std::int64_t kMaxBytes = 16 << 20;

// Two ranks that share a GPU. On rank 0 one shot is the fastest up to 64 KB, and NCCL in place above; on the other rank
// everything is the other way round. `check` gets the table.
void measure_on_two_ranks(std::chrono::milliseconds pause, const std::function<void(const SumTable&)>& check) {
  run_threads(RankKind::shm, 2, [&](Communicator& host) {
    MINISGL_CUDA_CHECK(cudaSetDevice(0));
    const DeviceMemory work(std::vector<std::byte>(64 << 20));
    const auto sum = [&](SumWay way, void* data, std::int64_t count, cudaStream_t stream) {
      const bool is_short = (way == SumWay::one_shot) == (count <= 32 << 10);
      const bool is_fast = is_short == (host.rank() == 0);
      MINISGL_CUDA_CHECK(cudaMemsetAsync(data, 0, 16, stream));
      for (int i = 0; !is_fast && i < 4; ++i) MINISGL_CUDA_CHECK(cudaMemsetAsync(work.data(), i, 64 << 20, stream));
    };
    const auto wait = [&](cudaStream_t stream) {
      std::this_thread::sleep_for(pause);
      MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream));
    };
    const auto can = [](SumWay way, std::int64_t num_bytes) {
      return way == SumWay::in_place || (way == SumWay::one_shot && num_bytes <= 4 << 20);
    };
    check(measure_sums(host, {kMaxBytes, can, sum, wait}));
  });
}

TEST(MeasureSums, RankZeroDecidesForAllByTime) {
  if (num_gpus() == 0) GTEST_SKIP() << "needs a GPU";
  measure_on_two_ranks(std::chrono::milliseconds(0), [](const SumTable& table) {
    EXPECT_EQ(table.text(), "sums of up to 64 KB in one shot, larger ones by NCCL in place");
  });
}

TEST(MeasureSums, WhatIsLeftAfterASecondIsDoneByNccl) {
  if (num_gpus() == 0) GTEST_SKIP() << "needs a GPU";
  measure_on_two_ranks(std::chrono::milliseconds(300), [](const SumTable& table) {
    EXPECT_EQ(table.text(), "sums of up to 4 KB in one shot, larger ones by NCCL in place");
  });
}

}  // namespace
}  // namespace minisgl
