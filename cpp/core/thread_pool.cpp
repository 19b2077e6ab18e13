// Threads that take tasks from one counter: no lock on the way, a short spin between runs, then a futex.
#include "core/thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/pause.h"
#include "core/quiet_thread.h"

namespace minisgl {
namespace {

// Long enough for the gaps between the operations of a step, short enough to leave the core to others after it.
constexpr std::chrono::microseconds spin_time{50};

constexpr std::int32_t stop_signal = -1;

// Returns once `done(value)` holds: spins for spin_time, then sleeps between changes of the value.
template <typename Done>
std::int32_t wait_until(const std::atomic<std::int32_t>& atomic, Done done) {
  const auto deadline = std::chrono::steady_clock::now() + spin_time;
  std::int32_t value = atomic.load(std::memory_order_acquire);
  while (!done(value) && std::chrono::steady_clock::now() < deadline) {
    for (int i = 0; i < 2; ++i) pause_briefly();
    value = atomic.load(std::memory_order_acquire);
  }
  while (!done(value)) {
    atomic.wait(value, std::memory_order_acquire);
    value = atomic.load(std::memory_order_acquire);
  }
  return value;
}

}  // namespace

// The description of a run is written before `unclaimed` grows and read only by threads that hold a claimed task. The
// caller waits for every claimed task, but for no thread: a worker that wakes late finds nothing to claim and delays
// nobody.
struct ThreadPool::State {
  alignas(64) std::atomic<std::int32_t> unclaimed{0};   // tasks that no thread took yet, or stop_signal
  alignas(64) std::atomic<std::int32_t> unfinished{0};  // tasks of the current run that are not done
  alignas(64) std::atomic<bool> failed{false};          // a task has thrown: the rest is claimed, but not run
  std::exception_ptr error;                             // written by the thread that set `failed`
  TaskFunction function = nullptr;
  void* context = nullptr;
  std::int32_t num_tasks = 0;
  std::vector<std::thread> workers;
  std::shared_ptr<Progress> progress = std::make_shared<Progress>();

  ~State() {
    unclaimed.store(stop_signal, std::memory_order_release);
    unclaimed.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  void run_one(std::int32_t task, int thread) noexcept {
    if (failed.load(std::memory_order_relaxed)) return;
    try {
      function(context, task, thread);
    } catch (...) {
      if (!failed.exchange(true, std::memory_order_relaxed)) error = std::current_exception();
    }
  }

  // Takes and runs tasks until none is left to take.
  void work(int thread) {
    std::int32_t num_done = 0;
    std::int32_t left = unclaimed.load(std::memory_order_relaxed);
    while (left > 0) {
      if (!unclaimed.compare_exchange_weak(left, left - 1, std::memory_order_acquire, std::memory_order_relaxed))
        continue;
      run_one(num_tasks - left, thread);
      if (thread == 0) progress->advance();
      ++num_done;
      left = unclaimed.load(std::memory_order_relaxed);
    }
    if (num_done > 0 && unfinished.fetch_sub(num_done, std::memory_order_acq_rel) == num_done) unfinished.notify_one();
  }

  void worker_main(int thread) {
    while (wait_until(unclaimed, [](std::int32_t left) { return left != 0; }) != stop_signal) work(thread);
  }
};

ThreadPool::ThreadPool(int num_threads) : state_(std::make_unique<State>()) {
  MINISGL_CHECK(num_threads >= 1, "got ", num_threads, " threads");
  state_->workers.reserve(static_cast<std::size_t>(num_threads - 1));
  for (int thread = 1; thread < num_threads; ++thread) {
    state_->workers.push_back(start_quiet_thread([state = state_.get(), thread] { state->worker_main(thread); }));
    pthread_setname_np(state_->workers.back().native_handle(), "minisgl-compute");
  }
}

ThreadPool::~ThreadPool() = default;

int ThreadPool::num_threads() const {
  return static_cast<int>(state_->workers.size()) + 1;
}

void ThreadPool::report_to(std::shared_ptr<Progress> progress) {
  state_->progress = std::move(progress);
}

Progress& ThreadPool::progress() const {
  return *state_->progress;
}

void ThreadPool::run(std::int64_t num_tasks, TaskFunction function, void* context) {
  State& state = *state_;
  if (num_tasks <= 1 || state.workers.empty()) {
    for (std::int64_t task = 0; task < num_tasks; ++task) {
      function(context, task, 0);
      state.progress->advance();
    }
    return;
  }
  MINISGL_CHECK(num_tasks <= std::numeric_limits<std::int32_t>::max(), "got ", num_tasks, " tasks");
  state.function = function;
  state.context = context;
  state.num_tasks = static_cast<std::int32_t>(num_tasks);
  state.unfinished.store(state.num_tasks, std::memory_order_relaxed);
  state.unclaimed.store(state.num_tasks, std::memory_order_release);
  state.unclaimed.notify_all();
  state.work(0);
  wait_until(state.unfinished, [](std::int32_t left) { return left == 0; });
  if (state.failed.load(std::memory_order_relaxed)) {
    state.failed.store(false, std::memory_order_relaxed);
    std::rethrow_exception(std::exchange(state.error, nullptr));
  }
}

}  // namespace minisgl
