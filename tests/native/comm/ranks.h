// Runs a function on several ranks: threads that share a process, or processes.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "comm/shm.h"

namespace minisgl {

inline void run_threads(int size, const std::function<void(Communicator&)>& function) {
  std::vector<std::thread> threads;
  for (auto& communicator : make_shm_communicators(size)) {
    threads.emplace_back([&function, communicator = std::move(communicator)] { function(*communicator); });
  }
  for (std::thread& thread : threads) thread.join();
}

// A name that no other group of this host has.
inline std::string unique_group_name() {
  static std::atomic<int> count{0};
  return "test-" + std::to_string(getpid()) + "-" + std::to_string(count++);
}

// A child process that runs the function and ends with what it returns; -1 for an exception, which it prints.
inline pid_t start_process(const std::function<int()>& function) {
  const pid_t pid = fork();
  if (pid != 0) return pid;
  int status = -1;
  try {
    status = function();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "process %d: %s\n", getpid(), error.what());
  }
  _exit(status);
}

inline int wait_for_process(pid_t pid) {
  int status = 0;
  EXPECT_EQ(waitpid(pid, &status, 0), pid);
  return status;
}

}  // namespace minisgl
