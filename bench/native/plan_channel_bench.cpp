// What it costs rank 0 to tell the others: from send() to the moment when all other ranks have the plan, and what a
// step costs rank 0's engine more with other ranks than without.
//
// Ranks are processes, as in service. The ceiling stands beside it: a bare word in shared memory and one futex wake for
// all of them, which is what the scheduling of so many processes on this machine's cores takes.
//
//   plan_channel_bench [ranks = 4] [rounds = 2000]    everything sleeps between two rounds, processors too
//   plan_channel_bench RANKS ROUNDS GAP               rank 0 works for GAP us there, as between two decode steps
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
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "comm/file_descriptor.h"
#include "comm/plan_ring.h"
#include "core/error.h"
#include "engine/plan_publisher.h"
#include "sched/scheduler.h"

namespace minisgl {
namespace {

using SteadyClock = std::chrono::steady_clock;
using namespace std::chrono_literals;

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

// A way to tell the other ranks something: `tell(round)` in rank 0, and in each of the others what `make_wait(rank)`
// gives, which returns once the rank has been told.
struct Way {
  std::string name;
  std::function<std::function<void(int round)>(int rank)> make_wait;
  std::function<void(int round)> tell;
};

double p50(std::vector<double> values) {
  std::ranges::nth_element(values, values.begin() + std::ssize(values) / 2);
  return values[values.size() / 2];
}

// Between two rounds; without a gap it sleeps.
void pause(std::chrono::microseconds gap) {
  if (gap == 0us) return std::this_thread::sleep_for(300us);
  const auto end = SteadyClock::now() + gap;
  while (SteadyClock::now() < end) {
  }
}

// Microseconds from before tell() to the last rank's return from wait(), and rank 0's own, a round of each way in
// turn, so that whatever changes on the machine changes for all alike. What a way takes beyond the first one is the
// median of the differences of neighbouring rounds.
void measure(int ranks, int rounds, std::chrono::microseconds gap, const std::vector<Way>& ways) {
  auto* board =
      static_cast<Board*>(mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  std::vector<pid_t> processes;
  for (int rank = 1; rank < ranks; ++rank) {
    processes.push_back(fork());
    if (processes.back() != 0) continue;
    std::vector<std::function<void(int)>> waits;
    for (const Way& way : ways) waits.push_back(way.make_wait(rank));
    for (int round = 0; round < rounds; ++round) {
      for (const std::function<void(int)>& wait : waits) {
        wait(round);
        board->arrivals[rank].time.store(now_ns());
        board->num_arrived.fetch_add(1);
      }
    }
    _exit(0);
  }
  std::vector<std::vector<double>> times(ways.size()), own(ways.size());
  std::uint32_t expected = 0;
  for (int round = 0; round < rounds; ++round) {
    for (std::size_t way = 0; way < ways.size(); ++way) {
      pause(gap);
      const std::int64_t began = now_ns();
      ways[way].tell(round);
      own[way].push_back(static_cast<double>(now_ns() - began) / 1000);
      expected += static_cast<std::uint32_t>(ranks - 1);
      while (board->num_arrived.load() < expected) {
        if (gap > 0us) {
          std::this_thread::yield();
        } else {
          std::this_thread::sleep_for(100us);
        }
      }
      std::int64_t last = 0;
      for (int rank = 1; rank < ranks; ++rank) last = std::max(last, board->arrivals[rank].time.load());
      times[way].push_back(static_cast<double>(last - began) / 1000);
    }
  }
  for (const pid_t process : processes) waitpid(process, nullptr, 0);
  munmap(board, sizeof(Board));
  for (std::size_t way = 0; way < ways.size(); ++way) {
    std::vector<double> beyond;
    for (std::size_t round = 0; round < times[way].size(); ++round) {
      beyond.push_back(times[way][round] - times[0][round]);
    }
    std::printf("%-30s all have it: p50 %6.1f us, %+6.1f beyond the first; rank 0's own time: p50 %5.1f us\n",
                ways[way].name.c_str(), p50(times[way]), p50(beyond), p50(own[way]));
  }
}

FileDescriptor ring_memory() {
  FileDescriptor memory(memfd_create("bench", MFD_CLOEXEC));
  if (ftruncate(memory.get(), static_cast<off_t>(plan_ring_bytes(1 << 22))) != 0) std::abort();
  return memory;
}

Way bare_wake_up() {
  auto* word = static_cast<std::atomic<std::uint32_t>*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  return {.name = "bare futex wake",
          .make_wait =
              [word](int) {
                return [word](int round) {
                  while (word->load() <= static_cast<std::uint32_t>(round)) {
                    syscall(SYS_futex, word, FUTEX_WAIT, static_cast<std::uint32_t>(round), nullptr, nullptr, 0);
                  }
                };
              },
          .tell =
              [word](int) {
                word->fetch_add(1);
                syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
              }};
}

struct Ignore final : PlanHandler {
  void add(SequenceId, SequenceSampling) override {}
  void remove(SequenceId) override {}
  void append(SequenceId, std::span<const std::int32_t>) override {}
  void pause(SequenceId, std::span<const std::int32_t>) override {}
  void mask(SequenceId, std::span<const std::uint32_t>) override {}
  void step(const StepPlan&) override {}
  void draw(std::span<const SequenceId>) override {}
  void copy(const TierCopies&, std::uint32_t) override {}
  void shut_down() override {}
};

// A decode step of `num_sequences`.
StepPlan decode_plan(std::int64_t num_sequences) {
  Scheduler scheduler(
      {.num_pages = num_sequences * 4, .max_running = num_sequences, .max_batch_tokens = num_sequences * 4});
  for (std::int64_t id = 0; id < num_sequences; ++id) {
    scheduler.add({.id = static_cast<SequenceId>(id), .prompt = {1, 2, 3}, .max_tokens = 10});
  }
  StepTokens drawn;
  accept_drafts(scheduler.plan(), std::vector<std::int32_t>(static_cast<std::size_t>(num_sequences), 5), drawn);
  scheduler.complete(drawn);
  return scheduler.plan();
}

Way plan_over_ring(int ranks, std::int64_t num_sequences) {
  const auto memory = std::make_shared<FileDescriptor>(ring_memory());
  const PlanRingOptions options{.size = ranks};
  std::vector<std::unique_ptr<PlanSender>> senders;
  senders.push_back(open_ring_sender(memory->get(), options));
  const auto publisher = std::make_shared<PlanPublisher>(std::move(senders));
  return {.name = concat("plan of ", num_sequences, " decoding sequences"),
          .make_wait =
              [=](int rank) {
                std::shared_ptr<PlanReceiver> receiver = open_ring_receiver(memory->get(), rank, options);
                auto decoder = std::make_shared<PlanDecoder>(PlanLimits{.num_pages = num_sequences * 4,
                                                                        .page_size = 16,
                                                                        .max_model_len = 64,
                                                                        .max_batch_tokens = num_sequences,
                                                                        .max_logits = num_sequences,
                                                                        .vocab_size = 100});
                return [=](int) {
                  Ignore ignore;
                  decoder->decode(receiver->receive(), ignore);
                };
              },
          .tell = [publisher, plan = decode_plan(num_sequences)](int) { publisher->step(plan); }};
}

}  // namespace
}  // namespace minisgl

int main(int argc, char** argv) {
  const int ranks = argc > 1 ? std::atoi(argv[1]) : 4, rounds = argc > 2 ? std::atoi(argv[2]) : 2000;
  const std::chrono::microseconds gap(argc > 3 ? std::atoi(argv[3]) : 0);
  std::printf("%d ranks on %u processors, %d rounds\n", ranks, std::thread::hardware_concurrency(), rounds);
  for (int repeat = 0; repeat < 3; ++repeat) {
    std::vector<minisgl::Way> ways{minisgl::bare_wake_up()};
    for (const std::int64_t sequences : {1, 64, 256}) ways.push_back(minisgl::plan_over_ring(ranks, sequences));
    minisgl::measure(ranks, rounds, gap, ways);
  }
  return 0;
}
