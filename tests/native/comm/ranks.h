// Runs a function on several ranks: threads that share a process, or processes.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
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
#include "comm/tcp.h"

namespace minisgl {

// A name that no other group of this host has.
inline std::string unique_group_name() {
  static std::atomic<int> count{0};
  return "test-" + std::to_string(getpid()) + "-" + std::to_string(count++);
}

// An address of this host that nobody listens on.
inline std::string free_address() {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  EXPECT_EQ(bind(socket, reinterpret_cast<sockaddr*>(&address), length), 0);
  EXPECT_EQ(getsockname(socket, reinterpret_cast<sockaddr*>(&address), &length), 0);
  close(socket);
  return "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
}

enum class RankKind { shm, tcp };

// Calls the function on a thread a rank.
inline void run_threads(RankKind kind, int size, const std::function<void(Communicator&)>& function) {
  std::vector<std::unique_ptr<Communicator>> sharing;
  if (kind == RankKind::shm) sharing = make_shm_communicators(size);
  const std::string address = free_address();
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      function(kind == RankKind::shm ? *sharing[static_cast<std::size_t>(rank)]
                                     : *make_tcp_communicator({address, "a secret", rank, size}));
    });
  }
  for (std::thread& thread : threads) thread.join();
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
