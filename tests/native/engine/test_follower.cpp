// Ranks of one engine: whatever is submitted and aborted whenever, all of them execute the same batches.
#include <poll.h>

#include <algorithm>
#include <mutex>
#include <thread>

#include "comm/plan_ends.h"
#include "engine/engine_fixture.h"
#include "engine/follower.h"
#include "engine/lookaheads.h"

namespace minisgl::testing_support {
namespace {

// One step as a model saw it.
struct Batch {
  std::vector<std::int32_t> tokens, positions, logit_rows;
  std::vector<std::vector<std::int32_t>> pages;  // by sequence, as far as its rows reach
  bool operator==(const Batch&) const = default;
};

// The batches of one rank. Read it when its engine or follower has ended.
class Log {
 public:
  std::function<void(const StepBatch&)> recorder() {
    return [this](const StepBatch& batch) {
      Batch copy{.tokens = {batch.tokens.begin(), batch.tokens.end()},
                 .positions = {batch.positions.begin(), batch.positions.end()},
                 .logit_rows = {batch.logit_rows.begin(), batch.logit_rows.end()},
                 .pages = {}};
      for (const ops::SequenceRows& rows : batch.sequences) {
        const std::int32_t length = rows.start_position + rows.num_rows;
        copy.pages.emplace_back(rows.page_table, rows.page_table + (length + batch.page_size - 1) / batch.page_size);
      }
      batches.push_back(std::move(copy));
    };
  }
  std::vector<Batch> batches;
};

PlanRingOptions ring_of(int size) {
  return {.size = size};
}

// Ranks in threads of this process.
class Group {
 public:
  Group(int size, const EngineConfig& options, std::size_t ring_bytes, bool runs_ahead)
      : logs(static_cast<std::size_t>(size)), memory_(ring_memory(ring_bytes)) {
    for (int rank = 1; rank < size; ++rank) {
      auto recorder = logs[static_cast<std::size_t>(rank)].recorder();
      auto plans = open_ring_receiver(memory_.get(), rank, ring_of(size));
      if (runs_ahead) {
        auto device = std::make_unique<AsyncDevice>();
        auto model = make_model_on(*device, std::move(recorder));
        followers.push_back(std::make_unique<Follower>(std::move(model), std::move(device), options, std::move(plans)));
      } else {
        followers.push_back(std::make_unique<Follower>(std::make_unique<FakeModel>(fake_spec(), std::move(recorder)),
                                                       make_cpu_device(1), options, std::move(plans)));
      }
      followers.back()->start();
    }
    PlanSenders senders;
    senders.push_back(open_ring_sender(memory_.get(), ring_of(size)));
    primary = runs_ahead ? std::make_unique<TestEngine>(std::make_unique<AsyncDevice>(), options, logs[0].recorder(),
                                                        std::move(senders), make_test_lookahead)
                         : std::make_unique<TestEngine>(options, 1, logs[0].recorder(), fake_spec(), std::move(senders),
                                                        make_test_lookahead);
  }

  std::vector<Log> logs;  // by rank
  std::vector<std::unique_ptr<Follower>> followers;
  std::unique_ptr<TestEngine> primary;

 private:
  FileDescriptor memory_;
};

void wait_for_end(const Follower& follower) {
  pollfd event{.fd = follower.event_fd(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(poll(&event, 1, 30'000), 1) << "a follower goes on";
}

TEST(Follower, AnyInterleavingGivesAllRanksTheSameBatches) {
  for (unsigned seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    EngineConfig options = small_options();
    options.num_pages = 64 + static_cast<std::int64_t>(random() % 32);  // scarce: sequences are preempted
    options.max_running = 4 + static_cast<std::int64_t>(random() % 28);
    options.max_batch_tokens = 16 + static_cast<std::int64_t>(random() % 64);
    options.max_drafts = static_cast<std::int64_t>(random() % 32);
    const int size = 2 + static_cast<int>(random() % 3);
    Group group(size, options, 200 + random() % 20'000, seed % 2 == 0);
    Engine& engine = group.primary->engine;
    engine.start();

    // Several callers at once: submits, aborts of their own and others' requests, and pauses between them.
    constexpr int num_callers = 3, requests_each = 25;
    std::vector<std::thread> callers;
    for (int caller = 0; caller < num_callers; ++caller) {
      callers.emplace_back([&, caller, own = std::mt19937(seed * 100 + static_cast<unsigned>(caller))]() mutable {
        for (int i = 0; i < requests_each; ++i) {
          const auto id = static_cast<std::uint64_t>(i * num_callers + caller + 1);
          engine.submit(random_request(id, options.max_model_len, own));
          if (own() % 3 == 0) engine.abort(1 + own() % (num_callers * requests_each));
          if (own() % 4 == 0) usleep(own() % 3000);
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
    group.primary->collect_until_finished(num_callers * requests_each);
    group.primary->expect_idle();
    engine.stop();
    for (const auto& follower : group.followers) {
      wait_for_end(*follower);
      EXPECT_EQ(follower->failure(), "");
    }
    EXPECT_GT(group.logs[0].batches.size(), 20u);
    for (std::size_t rank = 1; rank < group.logs.size(); ++rank) {
      EXPECT_TRUE(group.logs[rank].batches == group.logs[0].batches) << "rank " << rank << " of " << size;
    }
  }
}

TEST(Follower, StopsWhileItWaits) {
  Log log;
  const FileDescriptor memory = ring_memory(1000);
  Follower follower(std::make_unique<FakeModel>(fake_spec(), log.recorder()), make_cpu_device(1), small_options(),
                    open_ring_receiver(memory.get(), 1, ring_of(2)));
  follower.start();
  follower.stop();
  wait_for_end(follower);
  EXPECT_EQ(follower.failure(), "");
}

TEST(Follower, SaysWhatItDiedOf) {
  const FileDescriptor memory = ring_memory(1 << 16);
  const auto fail = [](const StepBatch&) { throw std::runtime_error("the device is gone"); };
  Follower follower(std::make_unique<FakeModel>(fake_spec(), fail), make_cpu_device(1), small_options(),
                    open_ring_receiver(memory.get(), 1, ring_of(2)));
  follower.start();
  PlanSenders senders;
  senders.push_back(open_ring_sender(memory.get(), ring_of(2)));
  TestEngine primary(small_options(), 1, {}, fake_spec(), std::move(senders));
  primary.engine.start();
  primary.run(make_request(1, {5, 6, 7}, 5));
  wait_for_end(follower);
  EXPECT_EQ(follower.failure(), "the device is gone");
}

TEST(Follower, GarbageEndsItWithAnErrorThatSaysWhere) {
  const FileDescriptor memory = ring_memory(1 << 16);
  Follower follower(std::make_unique<FakeModel>(), make_cpu_device(1), small_options(),
                    open_ring_receiver(memory.get(), 1, ring_of(2)));
  follower.start();
  open_ring_sender(memory.get(), ring_of(2))->send(std::as_bytes(std::span("\x07garbage")));
  wait_for_end(follower);
  EXPECT_EQ(follower.failure(), "a plan is damaged: it doesn't begin with MSP");
}

TEST(Follower, AStuckRankEndsTheEngineWithItsNumber) {
  const FileDescriptor memory = ring_memory(500);
  PlanRingOptions hasty = ring_of(2);
  hasty.stall_limit = std::chrono::milliseconds(200);
  PlanSenders senders;
  senders.push_back(open_ring_sender(memory.get(), hasty));  // nobody reads
  TestEngine primary(small_options(), 1, {}, fake_spec(), std::move(senders));
  primary.engine.start();
  Request request = make_request(1, {5, 6, 7}, 200);
  request.ignore_eos = true;
  const auto result = primary.run(request);
  EXPECT_EQ(result.finish, FinishReason::error);
  EXPECT_EQ(primary.engine.failure(), "rank 1 took no plan for 0.2 s");
}

}  // namespace
}  // namespace minisgl::testing_support
