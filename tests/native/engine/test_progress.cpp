// What a watch sees of an engine and of a follower: work, and whether it advances.
#include <thread>

#include "comm/plan_ends.h"
#include "engine/engine_fixture.h"
#include "engine/follower.h"
#include "engine/gate.h"

namespace minisgl::testing_support {
namespace {

using std::chrono::milliseconds;

std::unique_ptr<Device> watched_device(const std::shared_ptr<Progress>& progress) {
  auto device = make_cpu_device(1);
  device->pool().report_to(progress);
  return device;
}

void wait_until_idle(const Progress& progress) {
  EXPECT_TRUE(eventually([&] { return !progress.working(); }));
}

// Work, and for a while nothing done.
void expect_stuck(const Progress& progress) {
  EXPECT_TRUE(progress.working());
  const std::uint64_t before = progress.done();
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_EQ(progress.done(), before);
  EXPECT_TRUE(progress.working());
}

TEST(EngineProgress, StandsStillWithWorkWhileAStepIsStuck) {
  const auto progress = std::make_shared<Progress>();
  Gate gate;
  Engine engine(std::make_unique<FakeModel>(fake_spec(), [&](const StepBatch&) { gate.pass(); }),
                watched_device(progress), small_options());
  engine.start();
  EXPECT_FALSE(progress->working());
  engine.submit(make_request(1, {5, 6, 7}, 5));
  gate.wait_for_arrival();
  expect_stuck(*progress);
  const std::uint64_t before = progress->done();
  gate.open();
  wait_until_idle(*progress);
  EXPECT_GE(progress->done(), before + 5);  // steps
}

TEST(EngineProgress, WorkBeginsWithASubmissionThatNobodyTook) {
  const auto progress = std::make_shared<Progress>();
  Engine engine(std::make_unique<FakeModel>(), watched_device(progress), small_options());
  engine.submit(make_request(1, {5, 6, 7}, 5));
  EXPECT_TRUE(progress->working());
  engine.stop();
  EXPECT_FALSE(progress->working());
}

TEST(EngineProgress, EndsWithTheEnginesFailure) {
  const auto progress = std::make_shared<Progress>();
  Engine engine(std::make_unique<FakeModel>(fake_spec(),
                                            [](const StepBatch&) { throw std::runtime_error("the device is gone"); }),
                watched_device(progress), small_options());
  engine.start();
  engine.submit(make_request(1, {5, 6, 7}, 5));
  wait_until_idle(*progress);
  EXPECT_EQ(engine.failure(), "the device is gone");
}

TEST(FollowerProgress, WaitingForRankZeroIsNoWorkAndAStuckStepIs) {
  const FileDescriptor memory = ring_memory(1 << 16);
  const PlanRingOptions ring{.size = 2};
  const auto progress = std::make_shared<Progress>();
  Gate gate;
  Follower follower(std::make_unique<FakeModel>(fake_spec(), [&](const StepBatch&) { gate.pass(); }),
                    watched_device(progress), small_options(), open_ring_receiver(memory.get(), 1, ring));
  progress->set_working(true);  // as while it loaded
  follower.start();
  wait_until_idle(*progress);
  PlanSenders senders;
  senders.push_back(open_ring_sender(memory.get(), ring));
  TestEngine primary(small_options(), 1, {}, fake_spec(), std::move(senders));
  primary.engine.start();
  primary.run(make_request(1, {5, 6, 7}, 5));  // rank 0 is done with it
  gate.wait_for_arrival();
  expect_stuck(*progress);
  const std::uint64_t before = progress->done();
  gate.open();
  wait_until_idle(*progress);
  EXPECT_GE(progress->done(), before + 5);
}

}  // namespace
}  // namespace minisgl::testing_support
