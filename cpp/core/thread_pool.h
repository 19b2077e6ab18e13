// The engine's own threads. One caller at a time; the caller works too.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#include "core/progress.h"

namespace minisgl {

class ThreadPool {
 public:
  // `num_threads` >= 1 counts the caller: ThreadPool(1) starts no thread.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  // Where the pool reports: each task that the caller runs itself is an advance. A rank's other work advances it, too.
  // Before the first run. What progress() returned until then is gone: who reports for long asks the pool each time.
  void report_to(std::shared_ptr<Progress> progress);
  Progress& progress() const;

  // Calls body(task, thread) once for each task in [0, num_tasks), spread over the threads in no fixed order, and
  // returns when all are done; thread is in [0, num_threads). An exception thrown by a task is rethrown here.
  // What a task computes must not depend on the thread that runs it.
  template <typename Body>
  void parallel_for(std::int64_t num_tasks, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run(
        num_tasks, [](void* context, std::int64_t task, int thread) { (*static_cast<Plain*>(context))(task, thread); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using TaskFunction = void (*)(void* context, std::int64_t task, int thread);
  void run(std::int64_t num_tasks, TaskFunction function, void* context);

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace minisgl
