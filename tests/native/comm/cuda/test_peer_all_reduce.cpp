// One-shot and two-shot sums between threads, with as many GPUs as there are: bit for bit the sum in the order of
// ranks, in and out of graphs, fused with residual and norm, and what happens when a rank doesn't come.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "comm/cuda/device_memory.h"
#include "comm/cuda/peer_all_reduce.h"
#include "comm/nccl.h"
#include "comm/random_parts.h"
#include "comm/ranks.h"

namespace minisgl {
namespace {

constexpr DType kDTypes[] = {DType::f32, DType::f16, DType::bf16};
constexpr PeerAlgorithm kAlgorithms[] = {PeerAlgorithm::one_shot, PeerAlgorithm::two_shot};
constexpr std::int64_t kOneShotBytes = 256 << 10, kTwoShotBytes = 1 << 20;

// function(host communicator, sums, stream) on a thread a rank.
void run_gpu_threads(int size, std::chrono::milliseconds timeout,
                     const std::function<void(Communicator&, PeerAllReduce&, const CudaStream&)>& function) {
  run_threads(RankKind::shm, size, [&](Communicator& host) {
    const int device = host.rank() % num_gpus();
    MINISGL_CUDA_CHECK(cudaSetDevice(device));
    std::string reason;
    const auto sums = PeerAllReduce::make(host, device, kOneShotBytes, kTwoShotBytes, timeout, reason);
    ASSERT_NE(sums, nullptr) << reason;
    const CudaStream stream = make_stream();
    function(host, *sums, stream);
    MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
    host.barrier(0);  // freeing waits for the device, and so for the other ranks
  });
}

class PeerAllReduceOn : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (num_gpus() == 0) GTEST_SKIP() << "needs a GPU";
  }
};

TEST_P(PeerAllReduceOn, IsTheSumInTheOrderOfRanks) {
  for (const DType dtype : kDTypes) {
    for (const std::int64_t count : {1, 8, 1003, 40'001}) {
      const auto expected = expected_sum(GetParam(), count, dtype);
      run_gpu_threads(GetParam(), std::chrono::seconds(20),
                      [&](Communicator& host, PeerAllReduce& sums, const CudaStream& stream) {
                        const auto part = random_part(host.rank(), count, dtype);
                        DeviceMemory data(part);
                        for (const PeerAlgorithm algorithm : kAlgorithms) {
                          data.set(part);
                          host.barrier(0);
                          sums.all_reduce_sum(algorithm, data.data(), count, dtype, stream.get());
                          MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
                          EXPECT_TRUE(data.get() == expected)
                              << "rank " << host.rank() << ", " << count << " " << dtype_info(dtype).name;
                          host.barrier(0);
                        }
                      });
    }
  }
}

TEST_P(PeerAllReduceOn, TakesDataThatIsNotAligned) {
  const std::int64_t count = 1000;
  const auto expected = expected_sum(GetParam(), count, DType::bf16);
  run_gpu_threads(GetParam(), std::chrono::seconds(20),
                  [&](Communicator& host, PeerAllReduce& sums, const CudaStream& stream) {
                    std::vector<std::byte> content(2);  // one element before the data
                    const auto part = random_part(host.rank(), count, DType::bf16);
                    content.insert(content.end(), part.begin(), part.end());
                    DeviceMemory data(content);
                    for (const PeerAlgorithm algorithm : kAlgorithms) {
                      data.set(content);
                      host.barrier(0);
                      sums.all_reduce_sum(algorithm, data.data() + 2, count, DType::bf16, stream.get());
                      MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
                      const auto got = data.get();
                      EXPECT_EQ(std::memcmp(got.data() + 2, expected.data(), expected.size()), 0);
                      host.barrier(0);
                    }
                  });
}

TEST_P(PeerAllReduceOn, AHundredThousandRecordedCallsGiveEveryRankTheSameBits) {
  const std::vector<std::int64_t> counts = {8, 2048, 100, 4096, 1, 20'000};
  const int calls_per_replay = 100, num_replays = 1000;
  const int size = GetParam();
  run_gpu_threads(
      size, std::chrono::seconds(20), [&](Communicator& host, PeerAllReduce& sums, const CudaStream& stream) {
        std::vector<DeviceMemory> inputs;
        std::vector<std::vector<std::byte>> expected;
        for (const std::int64_t count : counts) {
          inputs.emplace_back(random_part(host.rank(), count, DType::bf16));
          expected.push_back(expected_sum(size, count, DType::bf16));
        }
        const std::vector<std::byte> zeros(expected.back().size());
        std::vector<DeviceMemory> data;
        for (std::size_t i = 0; i < counts.size(); ++i) data.emplace_back(zeros);
        const CudaGraphExec graph = record(stream, [&] {
          for (int call = 0; call < calls_per_replay; ++call) {
            const std::size_t i = static_cast<std::size_t>(call) % counts.size();
            MINISGL_CUDA_CHECK(cudaMemcpyAsync(data[i].data(), inputs[i].data(), expected[i].size(),
                                               cudaMemcpyDeviceToDevice, stream.get()));
            sums.all_reduce_sum(kAlgorithms[call / 7 % 2], data[i].data(), counts[i], DType::bf16, stream.get());
          }
        });
        MINISGL_CUDA_CHECK(cudaGraphUpload(graph.get(), stream.get()));
        MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
        host.barrier(0);
        for (int replay = 0; replay < num_replays; ++replay) {
          MINISGL_CUDA_CHECK(cudaGraphLaunch(graph.get(), stream.get()));
          if (replay % 50 != 49) continue;
          MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
          for (std::size_t i = 0; i < counts.size(); ++i) {
            auto got = data[i].get();
            got.resize(expected[i].size());
            ASSERT_TRUE(got == expected[i]) << "rank " << host.rank() << ", replay " << replay << ", " << counts[i];
          }
          host.barrier(0);
        }
        EXPECT_EQ(sums.missing_rank(), std::nullopt);
      });
}

TEST_P(PeerAllReduceOn, FusedWithResidualAndNormIsTheThreeInTurn) {
  const int size = GetParam();
  struct Shape {
    std::int64_t rows, cols;
  };
  for (const DType dtype : kDTypes) {
    for (const auto [rows, cols] : {Shape{1, 4096}, Shape{3, 576}, Shape{7, 5120}, Shape{1, 24'576}}) {
      if (rows * row_bytes(dtype, cols) > kOneShotBytes || row_bytes(dtype, cols) > cuda::kMaxFusedBytes) continue;
      const std::int64_t count = rows * cols;
      const auto delta_sum = expected_sum(size, count, dtype);
      const auto residual = random_part(100, count, dtype), weight = random_part(200, cols, DType::f32);
      std::vector<std::vector<std::byte>> residuals(static_cast<std::size_t>(size)), outputs(residuals);
      run_gpu_threads(size, std::chrono::seconds(20),
                      [&](Communicator& host, PeerAllReduce& sums, const CudaStream& stream) {
                        DeviceMemory on_device(residual), delta(random_part(host.rank(), count, dtype)),
                            weights(weight), y(residual);
                        host.barrier(0);
                        ASSERT_TRUE(sums.all_reduce_add_rms_norm(
                            {on_device.data(), delta.data(), reinterpret_cast<const float*>(weights.data()), 1e-5f,
                             y.data(), rows, cols, dtype},
                            stream.get()));
                        MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
                        residuals[static_cast<std::size_t>(host.rank())] = on_device.get();
                        outputs[static_cast<std::size_t>(host.rank())] = y.get();
                        host.barrier(0);
                      });
      for (int rank = 1; rank < size; ++rank) {
        EXPECT_TRUE(residuals[static_cast<std::size_t>(rank)] == residuals[0]);
        EXPECT_TRUE(outputs[static_cast<std::size_t>(rank)] == outputs[0]);
      }
      const double unit = dtype == DType::f32 ? 1e-6 : dtype == DType::f16 ? 1e-3 : 8e-3;
      for (std::int64_t row = 0; row < rows; ++row) {
        double squares = 0;
        for (std::int64_t i = row * cols; i < (row + 1) * cols; ++i) {
          const double sum = static_cast<double>(element(residual, i, dtype)) + element(delta_sum, i, dtype);
          ASSERT_NEAR(element(residuals[0], i, dtype), sum, unit * (std::abs(sum) + 1e-3)) << i;
          squares += element(residuals[0], i, dtype) * static_cast<double>(element(residuals[0], i, dtype));
        }
        const double inverse = 1 / std::sqrt(squares / static_cast<double>(cols) + 1e-5);
        for (std::int64_t i = row * cols; i < (row + 1) * cols; ++i) {
          const double expected = element(residuals[0], i, dtype) * inverse * element(weight, i % cols, DType::f32);
          ASSERT_NEAR(element(outputs[0], i, dtype), expected, 2 * unit * (std::abs(expected) + 1e-3)) << i;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, PeerAllReduceOn, testing::Values(2, 3, 4, 8));

TEST(PeerAllReduceFailure, NamesTheRankThatDoesntComeWithinTheTimeLimit) {
  if (num_gpus() == 0) GTEST_SKIP() << "needs a GPU";
  run_gpu_threads(3, std::chrono::milliseconds(200),
                  [&](Communicator& host, PeerAllReduce& sums, const CudaStream& stream) {
                    DeviceMemory data(random_part(host.rank(), 1000, DType::f32));
                    host.barrier(0);
                    if (host.rank() != 1) {
                      const auto start = std::chrono::steady_clock::now();
                      sums.all_reduce_sum(PeerAlgorithm::one_shot, data.data(), 1000, DType::f32, stream.get());
                      MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
                      EXPECT_EQ(sums.missing_rank(), 1);
                      EXPECT_TRUE(std::isnan(element(data.get(), 999, DType::f32)));
                      EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
                      // From then on nobody waits.
                      sums.all_reduce_sum(PeerAlgorithm::two_shot, data.data(), 1000, DType::f32, stream.get());
                      MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
                    }
                    host.barrier(0);
                  });
}

TEST(PeerAllReduceFailure, GivingUpEndsAWaitUnderWay) {
  if (num_gpus() == 0) GTEST_SKIP() << "needs a GPU";
  run_gpu_threads(2, std::chrono::seconds(20), [&](Communicator& host, PeerAllReduce& sums, const CudaStream& stream) {
    DeviceMemory data(random_part(host.rank(), 1000, DType::f32));
    host.barrier(0);
    if (host.rank() == 0) {
      const auto start = std::chrono::steady_clock::now();
      sums.all_reduce_sum(PeerAlgorithm::two_shot, data.data(), 1000, DType::f32, stream.get());
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      EXPECT_EQ(cudaStreamQuery(stream.get()), cudaErrorNotReady);
      sums.give_up();
      MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
      EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
      EXPECT_EQ(sums.missing_rank(), std::nullopt);
    }
    host.barrier(0);
  });
}

}  // namespace
}  // namespace minisgl
