// Runs a function on several ranks: threads that share a process, or processes.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <random>
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

// A port of this host that nobody listens on. It stays so: it is below those that the kernel gives to whoever connects
// or binds port 0.
inline int free_port() {
  static std::mt19937 random(std::random_device{}());
  for (;;) {
    const int port = std::uniform_int_distribution(20'000, 32'000)(random);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
    const bool is_free = bind(socket, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    close(socket);
    if (is_free) return port;
  }
}

inline std::string free_address() {
  return "127.0.0.1:" + std::to_string(free_port());
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
