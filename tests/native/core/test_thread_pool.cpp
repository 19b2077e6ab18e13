// The thread pool: every task once, errors rethrown, many small runs, more threads than cores.
#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <csignal>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/thread_pool.h"

namespace minisgl {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, RunsEveryTaskOnceAndSeesPlainWrites) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.num_threads(), GetParam());
  for (std::int64_t num_tasks : {0, 1, 2, 3, 7, 64, 1000}) {
    std::vector<int> counts(static_cast<std::size_t>(num_tasks), 0);  // not atomic: the pool must order the accesses
    pool.parallel_for(num_tasks, [&](std::int64_t task, int thread) {
      ASSERT_GE(thread, 0);
      ASSERT_LT(thread, pool.num_threads());
      ++counts[static_cast<std::size_t>(task)];
    });
    EXPECT_EQ(counts, std::vector<int>(static_cast<std::size_t>(num_tasks), 1));
  }
}

TEST_P(ThreadPoolTest, AWatchSeesTasksThatEndWithinARun) {
  ThreadPool pool(GetParam());
  const auto progress = std::make_shared<Progress>();
  pool.report_to(progress);
  std::vector<std::uint64_t> seen;
  std::atomic<bool> others_came = GetParam() == 1;
  pool.parallel_for(200, [&](std::int64_t, int thread) {
    if (thread == 0) {
      seen.push_back(progress->done());
      others_came.wait(false);
    } else if (!others_came.exchange(true)) {
      others_came.notify_one();
    }
  });
  for (std::size_t i = 0; i < seen.size(); ++i) EXPECT_EQ(seen[i], i);
  EXPECT_EQ(progress->done(), seen.size());
  EXPECT_EQ(seen.size() == 200, GetParam() == 1);
}

TEST_P(ThreadPoolTest, ManySmallRunsInARow) {
  ThreadPool pool(GetParam());
  std::vector<std::int64_t> partial(64);
  std::int64_t total = 0;
  for (std::int64_t run = 0; run < 5000; ++run) {
    const std::int64_t num_tasks = 1 + run % 5;
    pool.parallel_for(num_tasks, [&](std::int64_t task, int) { partial[static_cast<std::size_t>(task)] = run + task; });
    total += std::accumulate(partial.begin(), partial.begin() + num_tasks, std::int64_t{0});
  }
  std::int64_t expected = 0;
  for (std::int64_t run = 0; run < 5000; ++run)
    for (std::int64_t task = 0; task < 1 + run % 5; ++task) expected += run + task;
  EXPECT_EQ(total, expected);
}

TEST_P(ThreadPoolTest, RunsAfterItsThreadsFellAsleep) {
  ThreadPool pool(GetParam());
  for (int run = 0; run < 5; ++run) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int> count{0};
    pool.parallel_for(10, [&](std::int64_t, int) { ++count; });
    EXPECT_EQ(count, 10);
  }
}

TEST_P(ThreadPoolTest, RethrowsATasksErrorAndWorksAfterwards) {
  ThreadPool pool(GetParam());
  for (int run = 0; run < 20; ++run) {
    EXPECT_THROW(pool.parallel_for(50,
                                   [](std::int64_t task, int) {
                                     if (task % 10 == 3) throw std::runtime_error("task failed");
                                   }),
                 std::runtime_error);
    std::atomic<int> count{0};
    pool.parallel_for(50, [&](std::int64_t, int) { ++count; });
    EXPECT_EQ(count, 50);
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3, 8));

TEST(ThreadPool, TasksRunOnDifferentThreads) {
  ThreadPool pool(2);
  // Two tasks that wait for each other can only end when two threads run them.
  std::atomic<int> arrived{0};
  int seen[2];
  pool.parallel_for(2, [&](std::int64_t task, int thread) {
    seen[task] = thread;
    ++arrived;
    while (arrived < 2) std::this_thread::yield();
  });
  EXPECT_NE(seen[0], seen[1]);
}

TEST(ThreadPool, NeedsAtLeastOneThread) {
  EXPECT_THROW(ThreadPool(0), CheckError);
}

TEST(ThreadPool, ASystemWithoutThreadsIsSaidInASentence) {
  pthread_attr_t before, attributes;
  ASSERT_EQ(pthread_getattr_default_np(&before), 0);
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, std::size_t{1} << 46);  // no process has room for such a stack
  ASSERT_EQ(pthread_setattr_default_np(&attributes), 0);
  try {
    ThreadPool pool(2);
    ADD_FAILURE() << "a thread was started";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("no more threads can be started"), std::string::npos);
  }
  pthread_setattr_default_np(&before);
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  EXPECT_EQ(sigismember(&mask, SIGTERM), 0);
  EXPECT_EQ(ThreadPool(2).num_threads(), 2);
}

}  // namespace
}  // namespace minisgl
