// The ring between the ranks of a host: everything arrives, in order, at every rank; nobody waits for the dead.
#include <sys/wait.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "comm/plan_ends.h"
#include "comm/plan_ring.h"
#include "core/error.h"

namespace minisgl::testing_support {
namespace {

using std::chrono::milliseconds;

TEST(PlanRing, EveryRankGetsEveryFrameInOrder) {
  for (const auto spin : {std::chrono::microseconds(0), std::chrono::microseconds(20)}) {
    const FileDescriptor memory = ring_memory(5000);  // frames lie over the end, and some are larger than the ring
    const PlanRingOptions options{.size = 4, .spin = spin};
    std::vector<std::thread> readers;
    for (int rank = 1; rank < 4; ++rank) {
      readers.emplace_back([&, rank, receiver = open_ring_receiver(memory.get(), rank, options)] {
        expect_frames(*receiver, 3000, 8000, 7, static_cast<unsigned>(rank));
      });
    }
    send_frames(*open_ring_sender(memory.get(), options), 3000, 8000, 7);
    for (std::thread& reader : readers) reader.join();
  }
}

TEST(PlanRing, AReaderThatComesLateMissesNothing) {
  const FileDescriptor memory = ring_memory(1 << 16);
  const PlanRingOptions options{.size = 2};
  send_frames(*open_ring_sender(memory.get(), options), 50, 1000, 3);
  expect_frames(*open_ring_receiver(memory.get(), 1, options), 50, 1000, 3, 0);
}

TEST(PlanRing, AnInterruptEndsTheWait) {
  const FileDescriptor memory = ring_memory(1000);
  const auto receiver = open_ring_receiver(memory.get(), 1, {.size = 2});
  std::thread other([&] {
    usleep(20'000);
    receiver->interrupt();
  });
  EXPECT_THROW(receiver->receive(), ChannelInterrupted);
  EXPECT_THROW(receiver->receive(), ChannelInterrupted);
  other.join();
}

// A process that is `rank` and does what it is told, to be killed.
template <typename Body>
pid_t start_process(Body body) {
  const pid_t pid = fork();
  if (pid == 0) {
    body();
    _exit(0);
  }
  return pid;
}

TEST(PlanRing, ADeadWriterIsNoticedAfterItsLastFrame) {
  const FileDescriptor memory = ring_memory(1 << 16);
  const PlanRingOptions options{.size = 2, .check_interval = milliseconds(50)};
  const pid_t writer = start_process([&] {
    const auto sender = open_ring_sender(memory.get(), options);
    send_frames(*sender, 5, 100, 3);
    usleep(100'000);
    kill(getpid(), SIGKILL);
  });
  const auto receiver = open_ring_receiver(memory.get(), 1, options);
  expect_frames(*receiver, 5, 100, 3, 0);
  expect_failure([&] { receiver->receive(); }, "rank 0 is dead");
  waitpid(writer, nullptr, 0);
}

TEST(PlanRing, ADeadReaderIsNoticedWhenTheRingIsFull) {
  const FileDescriptor memory = ring_memory(1000);
  const PlanRingOptions options{.size = 3, .check_interval = milliseconds(50)};
  const pid_t reader = start_process([&] {
    const auto receiver = open_ring_receiver(memory.get(), 2, options);
    receiver->receive();
    kill(getpid(), SIGKILL);
  });
  const auto healthy = open_ring_receiver(memory.get(), 1, options);
  std::thread thread([&] { EXPECT_THROW(while (true) healthy->receive(), ChannelInterrupted); });
  const auto sender = open_ring_sender(memory.get(), options);
  expect_failure([&] { send_frames(*sender, 1000, 100, 3); }, "rank 2 is dead");
  healthy->interrupt();
  thread.join();
  waitpid(reader, nullptr, 0);
}

TEST(PlanRing, AReaderThatTakesNothingIsNamedAfterTheLimit) {
  const FileDescriptor memory = ring_memory(1000);
  const PlanRingOptions options{.size = 2, .stall_limit = milliseconds(300), .check_interval = milliseconds(50)};
  const pid_t reader = start_process([&] {
    const auto receiver = open_ring_receiver(memory.get(), 1, options);
    raise(SIGSTOP);
  });
  const auto sender = open_ring_sender(memory.get(), options);
  const auto began = std::chrono::steady_clock::now();
  expect_failure([&] { send_frames(*sender, 1000, 100, 3); }, "rank 1 did not read its step plans for 0.3 s");
  EXPECT_GE(std::chrono::steady_clock::now() - began, milliseconds(300));
  kill(reader, SIGKILL);
  waitpid(reader, nullptr, 0);
}

TEST(PlanRing, GarbageInTheMemoryIsAnError) {
  const FileDescriptor memory = ring_memory(1000);
  const PlanRingOptions options{.size = 2};
  const auto sender = open_ring_sender(memory.get(), options);
  const auto receiver = open_ring_receiver(memory.get(), 1, options);
  const std::vector<std::byte> noise(plan_ring_bytes(1000), std::byte{0xfe});
  ASSERT_EQ(pwrite(memory.get(), noise.data(), noise.size(), 0), static_cast<ssize_t>(noise.size()));
  expect_failure([&] { receiver->receive(); }, "the plan channel is damaged");
  expect_failure([&] { sender->send({}); }, "the plan channel is damaged");
}

TEST(PlanRing, WhatIsNoRingIsRefused) {
  const FileDescriptor empty(memfd_create("test", MFD_CLOEXEC));
  EXPECT_THROW(open_ring_sender(empty.get(), {.size = 2}), InputError);
  EXPECT_THROW(open_ring_receiver(-1, 1, {.size = 2}), InputError);
}

}  // namespace
}  // namespace minisgl::testing_support
