// The shared-memory communicator between threads and between processes: sums in the order of ranks, any size, and what
// happens when a rank dies, stops, leaves or never comes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "comm/ranks.h"
#include "comm/shm.h"
#include "comm/sum.h"
#include "core/half.h"

namespace minisgl {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

// [count] random numbers of a rank in dtype.
std::vector<std::byte> random_part(int rank, std::int64_t count, DType dtype) {
  std::mt19937 random(static_cast<unsigned>(rank * 7919 + count));
  std::normal_distribution<float> normal;
  std::vector<std::byte> part(static_cast<std::size_t>(row_bytes(dtype, count)));
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = normal(random);
    const std::uint16_t half = dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
    const void* source = dtype == DType::f32 ? static_cast<const void*>(&value) : &half;
    std::memcpy(part.data() + row_bytes(dtype, i), source, static_cast<std::size_t>(row_bytes(dtype, 1)));
  }
  return part;
}

float element(const std::vector<std::byte>& part, std::int64_t i, DType dtype) {
  float value;
  std::uint16_t half;
  std::memcpy(dtype == DType::f32 ? static_cast<void*>(&value) : &half, part.data() + row_bytes(dtype, i),
              static_cast<std::size_t>(row_bytes(dtype, 1)));
  return dtype == DType::f32 ? value : dtype == DType::f16 ? f16_to_f32(half) : bf16_to_f32(half);
}

// The sum over ranks of random_part, in the order of ranks, rounded once.
std::vector<std::byte> expected_sum(int size, std::int64_t count, DType dtype) {
  std::vector<float> sums(static_cast<std::size_t>(count));
  for (int rank = 0; rank < size; ++rank) {
    const auto part = random_part(rank, count, dtype);
    for (std::int64_t i = 0; i < count; ++i) {
      float& sum = sums[static_cast<std::size_t>(i)];
      sum = rank == 0 ? element(part, i, dtype) : sum + element(part, i, dtype);
    }
  }
  std::vector<std::byte> expected(static_cast<std::size_t>(row_bytes(dtype, count)));
  for (std::int64_t i = 0; i < count; ++i) {
    const float sum = sums[static_cast<std::size_t>(i)];
    const std::uint16_t half = dtype == DType::f16 ? f32_to_f16(sum) : f32_to_bf16(sum);
    const void* source = dtype == DType::f32 ? static_cast<const void*>(&sum) : &half;
    std::memcpy(expected.data() + row_bytes(dtype, i), source, static_cast<std::size_t>(row_bytes(dtype, 1)));
  }
  return expected;
}

constexpr DType kDTypes[] = {DType::f32, DType::f16, DType::bf16};
// Nothing, less than a vector, summed by all, in shares, in several chunks.
constexpr std::int64_t kCounts[] = {0, 1, 7, 1024, 1000 * 9 + 5, 300'001};

class Shm : public testing::TestWithParam<int> {};

TEST_P(Shm, AllReduceIsTheSumInTheOrderOfRanks) {
  for (const DType dtype : kDTypes) {
    for (const std::int64_t count : kCounts) {
      const auto expected = expected_sum(GetParam(), count, dtype);
      run_threads(GetParam(), [&](Communicator& comm) {
        auto data = random_part(comm.rank(), count, dtype);
        comm.all_reduce_sum(data.data(), count, dtype, 0);
        EXPECT_TRUE(data == expected) << "rank " << comm.rank() << ", " << count << " of " << dtype_info(dtype).name;
      });
    }
  }
}

TEST_P(Shm, ReduceScatterIsOnePartOfTheSum) {
  const int size = GetParam();
  for (const DType dtype : kDTypes) {
    for (const std::int64_t count : {1, 100, 70'001}) {
      const auto expected = expected_sum(size, count * size, dtype);
      run_threads(size, [&](Communicator& comm) {
        const auto input = random_part(comm.rank(), count * size, dtype);
        std::vector<std::byte> output(static_cast<std::size_t>(row_bytes(dtype, count)));
        comm.reduce_scatter_sum(input.data(), output.data(), count, dtype, 0);
        EXPECT_EQ(std::memcmp(output.data(), expected.data() + comm.rank() * row_bytes(dtype, count), output.size()),
                  0);
      });
    }
  }
}

TEST_P(Shm, AllGatherPutsPartsInTheOrderOfRanks) {
  const int size = GetParam();
  for (const std::int64_t count : {1, 333, 200'000}) {
    run_threads(size, [&](Communicator& comm) {
      const std::vector<std::int32_t> input(static_cast<std::size_t>(count), comm.rank());
      std::vector<std::int32_t> output(static_cast<std::size_t>(count * size), -1);
      comm.all_gather(input.data(), output.data(), count * 4, 0);
      std::vector<std::int32_t> in_place(output.size(), -1);
      std::copy(input.begin(), input.end(), in_place.begin() + comm.rank() * count);
      comm.all_gather(in_place.data() + comm.rank() * count, in_place.data(), count * 4, 0);
      for (std::size_t i = 0; i < output.size(); ++i) ASSERT_EQ(output[i], static_cast<std::int32_t>(i) / count) << i;
      EXPECT_EQ(in_place, output);
    });
  }
}

TEST_P(Shm, BroadcastReachesEveryRankFromEveryRoot) {
  run_threads(GetParam(), [&](Communicator& comm) {
    for (int root = 0; root < comm.size(); ++root) {
      std::vector<std::int32_t> data(100'001, comm.rank());
      comm.broadcast(data.data(), static_cast<std::int64_t>(data.size()) * 4, root, 0);
      EXPECT_EQ(data, std::vector<std::int32_t>(100'001, root));
    }
  });
}

TEST_P(Shm, NobodyPassesABarrierBeforeAllHaveCome) {
  std::atomic<int> come{0};
  run_threads(GetParam(), [&](Communicator& comm) {
    for (int round = 1; round <= 200; ++round) {
      ++come;
      comm.barrier(0);
      EXPECT_GE(come.load(), round * comm.size());
      comm.barrier(0);
    }
  });
}

TEST_P(Shm, ManyMixedCollectivesStayInStep) {
  run_threads(GetParam(), [&](Communicator& comm) {
    std::mt19937 random(1);  // the same on every rank
    for (int round = 0; round < 300; ++round) {
      const std::int64_t count = 1 + random() % (round % 10 == 0 ? 100'000 : 100);
      std::vector<float> data(static_cast<std::size_t>(count), static_cast<float>(comm.rank() + round));
      comm.all_reduce_sum(data.data(), count, DType::f32, 0);
      const int size = comm.size();
      ASSERT_EQ(data.front(), static_cast<float>(size * round + size * (size - 1) / 2));
      ASSERT_EQ(data.back(), data.front());
      std::int32_t root = comm.rank();
      comm.broadcast(&root, 4, round % size, 0);
      ASSERT_EQ(root, round % size);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, Shm, testing::Values(1, 2, 3, 4, 8));

TEST(ShmSum, InstructionSetsAgree) {
  for (const DType dtype : kDTypes) {
    const std::int64_t count = 1003;
    std::vector<std::vector<std::byte>> parts;
    std::vector<const void*> inputs;
    for (int rank = 0; rank < 5; ++rank) parts.push_back(random_part(rank, count, dtype));
    for (const auto& part : parts) inputs.push_back(part.data());
    for (const CpuIsa isa : supported_cpu_isas()) {
      std::vector<std::byte> out(parts[0].size());
      sum_kernel(isa)(inputs.data(), 5, count, dtype, out.data());
      EXPECT_TRUE(out == expected_sum(5, count, dtype)) << cpu_isa_label(isa);
    }
  }
}

// The message of the RankFailure that repeated sums end with; "" if they don't within a minute.
std::string failure_of(Communicator& comm, int* culprit = nullptr) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  std::vector<float> data(1000);
  while (std::chrono::steady_clock::now() < deadline) {
    try {
      comm.all_reduce_sum(data.data(), 1000, DType::f32, 0);
    } catch (const RankFailure& failure) {
      if (culprit) *culprit = failure.rank();
      return failure.what();
    }
  }
  return "";
}

// Three processes of which `fate` befalls the last in the midst of sums; the messages of the other two.
std::vector<std::string> messages_after(int signal, milliseconds timeout, milliseconds& took) {
  const std::string name = unique_group_name();
  int ready[2], said[2];
  EXPECT_EQ(pipe(ready) + pipe(said), 0);
  std::vector<pid_t> processes;
  for (int rank = 0; rank < 3; ++rank) {
    processes.push_back(start_process([&] {
      const auto comm = make_shm_communicator({name, rank, 3, timeout});
      if (rank == 2 && write(ready[1], "r", 1) != 1) return 1;
      int culprit = -1;
      const std::string message = concat(failure_of(*comm, &culprit), "\n");
      if (write(said[1], message.data(), message.size()) < 0) return 1;
      const bool again = failure_of(*comm) + "\n" == message;
      return culprit == 2 && again ? 0 : 1;
    }));
  }
  char byte;
  EXPECT_EQ(read(ready[0], &byte, 1), 1);
  usleep(20'000);
  const auto start = std::chrono::steady_clock::now();
  kill(processes[2], signal);
  for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(wait_for_process(processes[rank]), 0);
  took = std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - start);
  kill(processes[2], SIGKILL);
  wait_for_process(processes[2]);
  close(said[1]);
  std::vector<std::string> messages(1);
  while (read(said[0], &byte, 1) == 1) {
    if (byte == '\n')
      messages.emplace_back();
    else
      messages.back() += byte;
  }
  messages.pop_back();
  for (const int fd : {ready[0], ready[1], said[0]}) close(fd);
  return messages;
}

TEST(ShmFailure, ADeadRankIsNamedAtOnce) {
  milliseconds took;
  const auto messages = messages_after(SIGKILL, milliseconds(60'000), took);
  EXPECT_THAT(messages, testing::ElementsAre(testing::MatchesRegex("rank 2 \\(process [0-9]+\\) has died"),
                                             testing::MatchesRegex("rank 2 \\(process [0-9]+\\) has died")));
  EXPECT_LT(took, milliseconds(30'000));
}

TEST(ShmFailure, AStoppedRankIsNamedAfterTheTimeLimit) {
  milliseconds took;
  const auto messages = messages_after(SIGSTOP, milliseconds(500), took);
  EXPECT_THAT(messages, testing::Each(testing::MatchesRegex(
                            "rank 2 \\(process [0-9]+\\) didn't come to a collective within 0.5 s and is stopped")));
  EXPECT_EQ(messages.size(), 2u);
  EXPECT_GE(took, milliseconds(500));
}

TEST(ShmFailure, ARankThatLeavesEndsTheOthersCollectives) {
  auto comms = make_shm_communicators(3);
  std::thread waiting([&] { EXPECT_THAT(failure_of(*comms[0]), HasSubstr("rank 1")); });
  comms[1].reset();
  waiting.join();
  EXPECT_THAT(failure_of(*comms[2]), HasSubstr("has left the group"));
}

template <typename Failure>
std::string message_of(const ShmOptions& options) {
  try {
    make_shm_communicator(options);
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "";
}

TEST(ShmRendezvous, NamesTheRanksThatDontCome) {
  const std::string name = unique_group_name();
  const auto expect_names = [&](int rank) {
    EXPECT_THAT(message_of<RankFailure>({name, rank, 4, milliseconds(300)}),
                HasSubstr("ranks 0, 2 didn't come within 0.3 s"));
  };
  std::thread other(expect_names, 1);
  expect_names(3);
  other.join();
}

TEST(ShmRendezvous, NamesARankThatDiesMeanwhile) {
  const std::string name = unique_group_name();
  std::string message;
  std::thread waiting([&] { message = message_of<RankFailure>({name, 0, 3, milliseconds(20'000)}); });
  usleep(100'000);
  const pid_t process =
      start_process([&] { return make_shm_communicator({name, 2, 3, milliseconds(20'000)}) ? 0 : 1; });
  usleep(100'000);
  kill(process, SIGKILL);
  wait_for_process(process);
  waiting.join();
  EXPECT_THAT(message, HasSubstr("rank 2 ended before all ranks had come"));
}

TEST(ShmRendezvous, RefusesRanksThatDontFit) {
  const std::string name = unique_group_name();
  std::thread other([&] { EXPECT_THAT(message_of<InputError>({name, 0, 2, milliseconds(20'000)}), HasSubstr("fit")); });
  EXPECT_THAT(message_of<InputError>({name, 0, 2, milliseconds(20'000)}), HasSubstr("has that rank"));
  other.join();
  EXPECT_THAT(message_of<InputError>({name, 2, 2}), HasSubstr("rank must be in [0, 2), got 2"));
  EXPECT_THAT(message_of<InputError>({"", 0, 2}), HasSubstr("1 to 64 characters"));
}

}  // namespace
}  // namespace minisgl
