// An engine whose model is cut over two GPU ranks, its decode steps recorded with the collectives inside, says what one
// GPU says. Each rank is this program again, running the disabled test below; ranks that share a GPU pose as different
// hosts, because NCCL refuses them otherwise.
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "comm/nccl.h"
#include "comm/plan_ends.h"
#include "comm/ranks.h"
#include "engine/device_answers.h"
#include "engine/follower.h"
#include "kernels/cuda/backend.h"

extern char** environ;

namespace minisgl::testing_support {
namespace {

constexpr int kRanks = 2;
constexpr std::chrono::milliseconds kTimeout{40'000};

pid_t start_rank(int rank, const std::string& group, int ring, const std::string& communicator) {
  std::vector<std::string> variables = {"MINISGL_TEST_RANK=" + std::to_string(rank), "MINISGL_TEST_GROUP=" + group,
                                        "MINISGL_TEST_RING=" + std::to_string(ring),
                                        "MINISGL_TEST_COMM=" + communicator, "NCCL_NVLS_ENABLE=0"};
  if (num_gpus() < kRanks) {
    variables.push_back("NCCL_HOSTID=" + group + "-" + std::to_string(rank));
    variables.push_back("NCCL_SOCKET_IFNAME=lo");
  }
  std::vector<char*> environment;
  for (std::string& variable : variables) environment.push_back(variable.data());
  for (char** variable = environ; *variable != nullptr; ++variable) environment.push_back(*variable);
  environment.push_back(nullptr);
  std::string words[] = {"test_engine", "--gtest_filter=GpuRank.DISABLED_Engine", "--gtest_also_run_disabled_tests",
                         "--gtest_brief=1"};
  char* arguments[] = {words[0].data(), words[1].data(), words[2].data(), words[3].data(), nullptr};
  pid_t pid = -1;
  EXPECT_EQ(posix_spawn(&pid, "/proc/self/exe", nullptr, nullptr, arguments, environment.data()), 0);
  return pid;
}

class GpuRanks : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, GpuRanks, ::testing::Values("nccl", "peers"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(GpuRanks, AnswerAsOneGpuDoes) {
  if (num_gpus() == 0) GTEST_SKIP() << "needs a GPU";
  const FileDescriptor memory = ring_memory(1 << 20);
  const int inherited = dup(memory.get());  // a duplicate stays open in new programs
  const std::string group = unique_group_name();
  std::vector<pid_t> processes;
  for (int rank = 0; rank < kRanks; ++rank) processes.push_back(start_rank(rank, group, inherited, GetParam()));
  close(inherited);
  for (const pid_t process : processes) EXPECT_EQ(wait_for_process(process), 0);
}

// From here on: what a rank does.

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  MINISGL_CHECK(value != nullptr, name, " is not set");
  return value;
}

std::unique_ptr<Communicator> join(int rank) {
  const auto host = make_shm_communicator({variable("MINISGL_TEST_GROUP"), rank, kRanks, kTimeout});
  const GpuSums sums = variable("MINISGL_TEST_COMM") == "peers" ? GpuSums::peers : GpuSums::nccl;
  return make_gpu_communicator({.device = rank % num_gpus(), .sums = sums, .timeout = kTimeout}, *host);
}

void follow(int rank, const EngineConfig& options, int ring) {
  std::shared_ptr<Communicator> comm = join(rank);
  auto device = make_cuda_device(comm->device(), 2, comm);
  auto model = minisgl::testing::load(small_qwen3(), *device);
  Follower follower(std::move(model), std::move(device), options, open_ring_receiver(ring, rank, {.size = kRanks}));
  follower.start();
  pollfd end{.fd = follower.event_fd(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(poll(&end, 1, 120'000), 1) << "rank 0 doesn't end";
  EXPECT_EQ(follower.failure(), "");
}

TEST(GpuRank, DISABLED_Engine) {
  const int rank = std::stoi(variable("MINISGL_TEST_RANK")), ring = std::stoi(variable("MINISGL_TEST_RING"));
  const EngineConfig options = small_device_options(true);
  if (rank != 0) return follow(rank, options, ring);

  std::shared_ptr<Communicator> comm = join(rank);
  std::printf("ranks sum by %s\n", comm->name().c_str());
  const std::vector<Request> requests = many_requests();
  PlanSenders followers;
  followers.push_back(open_ring_sender(ring, {.size = kRanks}));
  const Answers got = answers_of(make_cuda_device(comm->device(), 2, comm), requests, options, std::move(followers));
  const Answers expected = answers_of(make_cuda_device(comm->device(), 2), requests, options);
  // bf16 sums of another order: a near-tie may go the other way.
  const int whole = compare(got, expected, requests);
  std::printf("of %zu answers equal to one GPU's: %d\n", requests.size(), whole);
  EXPECT_GE(whole, 20);
}

}  // namespace
}  // namespace minisgl::testing_support
