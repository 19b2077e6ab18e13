// An engine whose model is cut over ranks says what one device says. Ranks are threads: rank 0 plans, the others
// follow, and all of them compute their parts of the model.
#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "comm/plan_ends.h"
#include "comm/shm.h"
#include "engine/device_answers.h"
#include "engine/follower.h"
#include "kernels/cpu/backend.h"

namespace minisgl::testing_support {
namespace {

class Ranks : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(All, Ranks, ::testing::Values(2, 4));

TEST_P(Ranks, AnswerAsOneDeviceDoes) {
  const int size = GetParam();
  const std::vector<Request> requests = many_requests();
  EngineConfig options = small_device_options();
  options.kv_dtype = DType::f32;
  const Answers expected = answers_of(make_cpu_device(2), requests, options);

  auto communicators = make_shm_communicators(size);
  const FileDescriptor memory = ring_memory(1 << 20);
  std::vector<std::unique_ptr<Follower>> others;
  for (int rank = 1; rank < size; ++rank) {
    auto device = make_cpu_device(1, std::move(communicators[static_cast<std::size_t>(rank)]));
    auto model = minisgl::testing::load(small_qwen3(), *device);
    others.push_back(std::make_unique<Follower>(std::move(model), std::move(device), options,
                                                open_ring_receiver(memory.get(), rank, {.size = size})));
    others.back()->start();
  }
  PlanSenders followers;
  followers.push_back(open_ring_sender(memory.get(), {.size = size}));
  const Answers got =
      answers_of(make_cpu_device(1, std::move(communicators[0])), requests, options, std::move(followers));
  EXPECT_EQ(compare(got, expected, requests), std::ssize(requests)) << "every answer, drawn ones too";
  for (const auto& other : others) {
    other->stop();
    EXPECT_EQ(other->failure(), "");
  }
}

}  // namespace
}  // namespace minisgl::testing_support
