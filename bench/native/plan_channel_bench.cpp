// What it costs rank 0 to tell the others: from send() to the moment when all other ranks have the plan, and what a
// step costs rank 0's engine more with other ranks than without.
//
// Ranks are processes, as in service. The ceiling stands beside it: a bare word in shared memory and one futex wake for
// all of them, which is what the scheduling of so many processes on this machine's cores takes.
//
//   plan_channel_bench [ranks = 4] [rounds = 2000]
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#include "comm/file_descriptor.h"
#include "comm/plan_ring.h"
#include "engine/plan_publisher.h"
#include "sched/scheduler.h"

namespace minisgl {
namespace {

using SteadyClock = std::chrono::steady_clock;

// In memory that all processes share.
struct Board {
  std::atomic<std::uint32_t> word;                     // of the bare wake-up
  alignas(64) std::atomic<std::uint32_t> num_arrived;  // ranks that have the round's plan
  struct alignas(64) {
    std::atomic<std::int64_t> time;  // when the rank had it, ns
  } arrivals[max_ring_ranks];
};

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(SteadyClock::now().time_since_epoch()).count();
}

// `wait(round)` in each of the other ranks' processes, `tell(round)` here, pauses between rounds so that all sleep;
// prints microseconds from before tell() to the last rank's return from wait().
void measure(const char* name, int ranks, int rounds,
             const std::function<std::function<void(int)>(int rank)>& make_wait, const std::function<void(int)>& tell) {
  auto* board =
      static_cast<Board*>(mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  std::vector<pid_t> processes;
  for (int rank = 1; rank < ranks; ++rank) {
    processes.push_back(fork());
    if (processes.back() != 0) continue;
    const std::function<void(int)> wait = make_wait(rank);
    for (int round = 0; round < rounds; ++round) {
      wait(round);
      board->arrivals[rank].time.store(now_ns());
      board->num_arrived.fetch_add(1);
    }
    _exit(0);
  }
  std::vector<double> times;
  std::vector<double> own;
  for (int round = 0; round < rounds; ++round) {
    std::this_thread::sleep_for(std::chrono::microseconds(300));
    const std::int64_t began = now_ns();
    tell(round);
    own.push_back(static_cast<double>(now_ns() - began) / 1000);
    while (board->num_arrived.load() < static_cast<std::uint32_t>((round + 1) * (ranks - 1))) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    std::int64_t last = 0;
    for (int rank = 1; rank < ranks; ++rank) last = std::max(last, board->arrivals[rank].time.load());
    times.push_back(static_cast<double>(last - began) / 1000);
  }
  for (const pid_t process : processes) waitpid(process, nullptr, 0);
  munmap(board, sizeof(Board));
  std::ranges::sort(times);
  std::ranges::sort(own);
  std::printf("%-34s all have it: p50 %6.1f us, p90 %6.1f us; rank 0's own time: p50 %5.1f us\n", name,
              times[times.size() / 2], times[times.size() * 9 / 10], own[own.size() / 2]);
}

FileDescriptor ring_memory() {
  FileDescriptor memory(memfd_create("bench", MFD_CLOEXEC));
  if (ftruncate(memory.get(), static_cast<off_t>(plan_ring_bytes(1 << 22))) != 0) std::abort();
  return memory;
}

void bare_wake_up(int ranks, int rounds) {
  auto* word = static_cast<std::atomic<std::uint32_t>*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  measure(
      "bare futex wake", ranks, rounds,
      [word](int) {
        return [word](int round) {
          while (word->load() <= static_cast<std::uint32_t>(round)) {
            syscall(SYS_futex, word, FUTEX_WAIT, static_cast<std::uint32_t>(round), nullptr, nullptr, 0);
          }
        };
      },
      [word](int) {
        word->fetch_add(1);
        syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
      });
}

struct Ignore final : PlanHandler {
  void add(SequenceId, SequenceSampling) override {}
  void remove(SequenceId) override {}
  void step(const StepPlan&) override {}
  void shut_down() override {}
};

// A decode step of `num_sequences`.
StepPlan decode_plan(std::int64_t num_sequences) {
  Scheduler scheduler(
      {.num_pages = num_sequences * 4, .max_running = num_sequences, .max_batch_tokens = num_sequences * 4});
  for (std::int64_t id = 0; id < num_sequences; ++id) {
    scheduler.add({.id = static_cast<SequenceId>(id), .prompt = {1, 2, 3}, .max_tokens = 10});
  }
  scheduler.plan();
  scheduler.complete(std::vector<std::int32_t>(static_cast<std::size_t>(num_sequences), 5));
  return scheduler.plan();
}

void plan_over_ring(int ranks, int rounds, std::int64_t num_sequences) {
  const FileDescriptor memory = ring_memory();
  const PlanRingOptions options{.size = ranks};
  std::vector<std::unique_ptr<PlanSender>> senders;
  senders.push_back(open_ring_sender(memory.get(), options));
  PlanPublisher publisher(std::move(senders));
  const StepPlan plan = decode_plan(num_sequences);
  char name[64];
  std::snprintf(name, sizeof name, "plan of %lld decoding sequences", static_cast<long long>(num_sequences));
  measure(
      name, ranks, rounds,
      [&](int rank) {
        std::shared_ptr<PlanReceiver> receiver = open_ring_receiver(memory.get(), rank, options);
        auto decoder = std::make_shared<PlanDecoder>(
            PlanLimits{.num_pages = num_sequences * 4, .page_size = 16, .max_model_len = 64, .vocab_size = 100});
        return [=](int) {
          Ignore ignore;
          decoder->decode(receiver->receive(), ignore);
        };
      },
      [&](int) { publisher.step(plan); });
}

}  // namespace
}  // namespace minisgl

int main(int argc, char** argv) {
  const int ranks = argc > 1 ? std::atoi(argv[1]) : 4, rounds = argc > 2 ? std::atoi(argv[2]) : 2000;
  std::printf("%d ranks on %u processors, %d rounds\n", ranks, std::thread::hardware_concurrency(), rounds);
  for (int repeat = 0; repeat < 3; ++repeat) {
    minisgl::bare_wake_up(ranks, rounds);
    for (const std::int64_t sequences : {1, 64, 256}) minisgl::plan_over_ring(ranks, rounds, sequences);
  }
  return 0;
}
