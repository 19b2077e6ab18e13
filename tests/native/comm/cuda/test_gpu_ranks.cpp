// NCCL, alone and with sums through peer memory, between processes, with as many GPUs as there are: every collective in
// and out of a graph, and what happens when a rank dies or stops. Each rank is this program again, running one of the
// disabled tests below; ranks that share a GPU pose as different hosts, because NCCL refuses them otherwise.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "comm/cuda/device_memory.h"
#include "comm/nccl.h"
#include "comm/random_parts.h"
#include "comm/ranks.h"

extern char** environ;

namespace minisgl {
namespace {

using std::chrono::milliseconds;

constexpr DType kDTypes[] = {DType::f32, DType::f16, DType::bf16};

// Processes that run GpuRank.DISABLED_<test>, rank by rank.
std::vector<pid_t> start_gpu_ranks(const std::string& test, int size) {
  const std::string filter = "--gtest_filter=GpuRank.DISABLED_" + test, group = unique_group_name();
  std::vector<pid_t> processes;
  for (int rank = 0; rank < size; ++rank) {
    std::vector<std::string> variables = {"MINISGL_TEST_RANK=" + std::to_string(rank),
                                          "MINISGL_TEST_SIZE=" + std::to_string(size), "MINISGL_TEST_GROUP=" + group,
                                          "NCCL_NVLS_ENABLE=0"};
    if (num_gpus() < size) {
      variables.push_back("NCCL_HOSTID=" + group + "-" + std::to_string(rank));
      variables.push_back("NCCL_SOCKET_IFNAME=lo");
    }
    std::vector<char*> environment;
    for (std::string& variable : variables) environment.push_back(variable.data());
    for (char** variable = environ; *variable; ++variable) environment.push_back(*variable);
    environment.push_back(nullptr);
    std::string words[] = {"test_comm", filter, "--gtest_also_run_disabled_tests", "--gtest_brief=1"};
    char* arguments[] = {words[0].data(), words[1].data(), words[2].data(), words[3].data(), nullptr};
    pid_t pid = -1;
    EXPECT_EQ(posix_spawn(&pid, "/proc/self/exe", nullptr, nullptr, arguments, environment.data()), 0);
    processes.push_back(pid);
  }
  return processes;
}

int variable(const char* name) {
  const char* value = std::getenv(name);
  MINISGL_CHECK(value, name, " is not set");
  return std::atoi(value);
}

class GpuRanks : public testing::Test {
 protected:
  void SetUp() override {
    if (num_gpus() == 0) GTEST_SKIP() << "needs a GPU";
  }
};

TEST_F(GpuRanks, EveryCollectiveInAndOutOfAGraph) {
  for (const pid_t process : start_gpu_ranks("Collectives", 2)) EXPECT_EQ(wait_for_process(process), 0);
}

TEST_F(GpuRanks, WithSumsThroughPeerMemory) {
  for (const pid_t process : start_gpu_ranks("PeerMemory", 2)) EXPECT_EQ(wait_for_process(process), 0);
}

TEST_F(GpuRanks, WithTheFastestWays) {
  for (const pid_t process : start_gpu_ranks("Fastest", 2)) EXPECT_EQ(wait_for_process(process), 0);
}

class GpuRanksFailure : public GpuRanks, public testing::WithParamInterface<const char*> {};

// Rank 1 strikes itself after a while; rank 0 expects it.
TEST_P(GpuRanksFailure, EndsTheOthersCollectives) {
  const auto processes = start_gpu_ranks(GetParam(), 2);
  EXPECT_EQ(wait_for_process(processes[0]), 0);
  kill(processes[1], SIGKILL);
  wait_for_process(processes[1]);
}

INSTANTIATE_TEST_SUITE_P(Kinds, GpuRanksFailure,
                         testing::Values("Death", "Stop", "DeathWithPeerMemory", "StopWithPeerMemory"));

// From here on: what a rank does.

int own_gpu() {
  return variable("MINISGL_TEST_RANK") % num_gpus();
}

// Also makes the rank's GPU the current one, which streams and memory are made on.
std::unique_ptr<Communicator> host_communicator() {
  MINISGL_CUDA_CHECK(cudaSetDevice(own_gpu()));
  return make_shm_communicator({std::getenv("MINISGL_TEST_GROUP"), variable("MINISGL_TEST_RANK"),
                                variable("MINISGL_TEST_SIZE"), milliseconds(60'000)});
}

std::unique_ptr<Communicator> gpu_communicator(Communicator& host, GpuSums sums, milliseconds timeout,
                                               std::int64_t buffer_bytes = 0) {
  auto communicator = make_gpu_communicator(
      {.device = own_gpu(), .sums = sums, .max_buffer_bytes = buffer_bytes, .timeout = timeout}, host);
  if (host.rank() == 0) std::printf("%s\n", communicator->name().c_str());
  return communicator;
}

// Every collective on `stream`, several sizes and types, twice: as it is, and recorded and replayed twice.
void check_collectives(Communicator& comm, const CudaStream& stream) {
  const int size = comm.size(), rank = comm.rank();
  const auto handle = reinterpret_cast<StreamHandle>(stream.get());
  const auto run = [&](auto body) {
    body();
    MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  };
  for (const DType dtype : kDTypes) {
    for (const std::int64_t count : {1, 5000, 600'000}) {
      const auto part = random_part(rank, count, dtype), sum = expected_sum(size, count, dtype);
      const auto shares = random_part(rank, count * size, dtype), share_sum = expected_sum(size, count * size, dtype);
      DeviceMemory data(part), gathered(shares), input(shares), scattered(part), sent(part);
      const auto bytes = static_cast<std::size_t>(row_bytes(dtype, count));
      const auto reset = [&] {
        data.set(part);
        gathered.set(shares);
        scattered.set(part);
        sent.set(part);
      };
      const auto body = [&] {
        comm.all_reduce_sum(data.data(), count, dtype, handle);
        comm.all_gather(sent.data(), gathered.data(), static_cast<std::int64_t>(bytes), handle);
        comm.reduce_scatter_sum(input.data(), scattered.data(), count, dtype, handle);
        comm.broadcast(sent.data(), static_cast<std::int64_t>(bytes), size - 1, handle);
        comm.barrier(handle);
      };
      const auto check = [&](const char* how) {
        SCOPED_TRACE(concat(how, ", ", count, " of ", dtype_info(dtype).name));
        EXPECT_TRUE(data.get() == sum);
        const auto all = gathered.get(), own_share = scattered.get();
        for (int other = 0; other < size; ++other)
          EXPECT_EQ(std::memcmp(all.data() + static_cast<std::size_t>(other) * bytes,
                                random_part(other, count, dtype).data(), bytes),
                    0);
        EXPECT_EQ(std::memcmp(own_share.data(), share_sum.data() + static_cast<std::size_t>(rank) * bytes, bytes), 0);
        EXPECT_TRUE(sent.get() == random_part(size - 1, count, dtype));
      };
      run(body);
      check("as it is");
      reset();
      const CudaGraphExec graph = record(stream, body);
      for (int replay = 0; replay < 2; ++replay) {
        reset();
        run([&] { MINISGL_CUDA_CHECK(cudaGraphLaunch(graph.get(), stream.get())); });
        check("recorded");
      }
    }
  }
}

TEST(GpuRank, DISABLED_Collectives) {
  const auto host = host_communicator();
  const CudaStream stream = make_stream();
  for (const GpuSums sums : {GpuSums::nccl, GpuSums::registered})  // the largest sum takes two to three pieces
    check_collectives(*gpu_communicator(*host, sums, milliseconds(40'000), 1 << 20), stream);
}

TEST(GpuRank, DISABLED_PeerMemory) {
  const auto host = host_communicator();
  const CudaStream stream = make_stream();
  const auto comm = gpu_communicator(*host, GpuSums::peers, milliseconds(40'000));
  check_collectives(*comm, stream);
  EXPECT_TRUE(comm->sums_by_rank());
  constexpr std::int64_t kCount = 9'000'000;  // more than there is memory for at once
  DeviceMemory data(random_part(comm->rank(), kCount, DType::bf16));
  comm->all_reduce_sum(data.data(), kCount, DType::bf16, reinterpret_cast<StreamHandle>(stream.get()));
  MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  EXPECT_TRUE(data.get() == expected_sum(comm->size(), kCount, DType::bf16));
}

TEST(GpuRank, DISABLED_Fastest) {
  const auto host = host_communicator();
  const CudaStream stream = make_stream();
  check_collectives(*gpu_communicator(*host, GpuSums::fastest, milliseconds(40'000), 1 << 20), stream);
}

// Sums until another rank's failure ends them, which must name rank 1 within `limit`. Rank 1 raises the signal soon.
void sum_until_failure(Communicator& comm, int signal, milliseconds limit) {
  using Clock = std::chrono::steady_clock;
  const CudaStream stream = make_stream();
  const DeviceMemory data(random_part(0, 1000, DType::f32));
  Clock::time_point last;
  try {
    for (int sum = 0;; ++sum) {
      if (comm.rank() == 1 && sum == 20) raise(signal);
      last = Clock::now();
      comm.begin_wait();
      comm.all_reduce_sum(data.data(), 1000, DType::f32, reinterpret_cast<StreamHandle>(stream.get()));
      MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
      comm.end_wait();
    }
  } catch (const RankFailure& failure) {
    const auto took = std::chrono::duration_cast<milliseconds>(Clock::now() - last);
    std::printf("%s (%d ms after the last sum began)\n", failure.what(), static_cast<int>(took.count()));
    EXPECT_EQ(failure.rank(), 1);
    EXPECT_LT(took, limit);
    EXPECT_THROW(comm.all_reduce_sum(data.data(), 1, DType::f32, 0), RankFailure);
  }
}

void fail_with(GpuSums sums, int signal, milliseconds timeout, milliseconds limit) {
  const auto host = host_communicator();
  sum_until_failure(*gpu_communicator(*host, sums, timeout), signal, limit);
}

TEST(GpuRank, DISABLED_Death) {
  fail_with(GpuSums::nccl, SIGKILL, milliseconds(30'000), milliseconds(5'000));
}
TEST(GpuRank, DISABLED_Stop) {
  fail_with(GpuSums::nccl, SIGSTOP, milliseconds(2'000), milliseconds(6'000));
}
TEST(GpuRank, DISABLED_DeathWithPeerMemory) {
  fail_with(GpuSums::peers, SIGKILL, milliseconds(30'000), milliseconds(5'000));
}
TEST(GpuRank, DISABLED_StopWithPeerMemory) {
  fail_with(GpuSums::peers, SIGSTOP, milliseconds(2'000), milliseconds(6'000));
}

}  // namespace
}  // namespace minisgl
