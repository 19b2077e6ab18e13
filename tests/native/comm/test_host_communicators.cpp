// Communicators between CPU ranks, over shared memory and over TCP: sums in the order of ranks, bit for bit, any size.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "comm/random_parts.h"
#include "comm/ranks.h"
#include "comm/sum.h"

namespace minisgl {
namespace {

constexpr DType kDTypes[] = {DType::f32, DType::f16, DType::bf16};
// Nothing, less than a vector, summed by all, in shares, in several chunks.
constexpr std::int64_t kCounts[] = {0, 1, 7, 1024, 1000 * 9 + 5, 300'001};

struct Group {
  RankKind kind;
  int size;
};

class HostCommunicator : public testing::TestWithParam<Group> {
 protected:
  int size() const { return GetParam().size; }
  void run(const std::function<void(Communicator&)>& function) { run_threads(GetParam().kind, size(), function); }
};

TEST_P(HostCommunicator, AllReduceIsTheSumInTheOrderOfRanks) {
  for (const DType dtype : kDTypes) {
    for (const std::int64_t count : kCounts) {
      const auto expected = expected_sum(size(), count, dtype);
      run([&](Communicator& comm) {
        auto data = random_part(comm.rank(), count, dtype);
        comm.all_reduce_sum(data.data(), count, dtype, 0);
        EXPECT_TRUE(data == expected) << "rank " << comm.rank() << ", " << count << " of " << dtype_info(dtype).name;
      });
    }
  }
}

TEST_P(HostCommunicator, ReduceScatterIsOnePartOfTheSum) {
  for (const DType dtype : kDTypes) {
    for (const std::int64_t count : {1, 100, 70'001}) {
      const auto expected = expected_sum(size(), count * size(), dtype);
      run([&](Communicator& comm) {
        const auto input = random_part(comm.rank(), count * size(), dtype);
        std::vector<std::byte> output(static_cast<std::size_t>(row_bytes(dtype, count)));
        comm.reduce_scatter_sum(input.data(), output.data(), count, dtype, 0);
        EXPECT_EQ(std::memcmp(output.data(), expected.data() + comm.rank() * row_bytes(dtype, count), output.size()),
                  0);
      });
    }
  }
}

TEST_P(HostCommunicator, AllGatherPutsPartsInTheOrderOfRanks) {
  for (const std::int64_t count : {1, 333, 200'000}) {
    run([&](Communicator& comm) {
      const std::vector<std::int32_t> input(static_cast<std::size_t>(count), comm.rank());
      std::vector<std::int32_t> output(static_cast<std::size_t>(count * size()), -1);
      comm.all_gather(input.data(), output.data(), count * 4, 0);
      std::vector<std::int32_t> in_place(output.size(), -1);
      std::copy(input.begin(), input.end(), in_place.begin() + comm.rank() * count);
      comm.all_gather(in_place.data() + comm.rank() * count, in_place.data(), count * 4, 0);
      for (std::size_t i = 0; i < output.size(); ++i) ASSERT_EQ(output[i], static_cast<std::int32_t>(i) / count) << i;
      EXPECT_EQ(in_place, output);
    });
  }
}

TEST_P(HostCommunicator, BroadcastReachesEveryRankFromEveryRoot) {
  run([&](Communicator& comm) {
    for (int root = 0; root < comm.size(); ++root) {
      std::vector<std::int32_t> data(100'001, comm.rank());
      comm.broadcast(data.data(), static_cast<std::int64_t>(data.size()) * 4, root, 0);
      EXPECT_EQ(data, std::vector<std::int32_t>(100'001, root));
    }
  });
}

TEST_P(HostCommunicator, NobodyPassesABarrierBeforeAllHaveCome) {
  std::atomic<int> come{0};
  run([&](Communicator& comm) {
    for (int round = 1; round <= 200; ++round) {
      ++come;
      comm.barrier(0);
      EXPECT_GE(come.load(), round * comm.size());
      comm.barrier(0);
    }
  });
}

TEST_P(HostCommunicator, ManyMixedCollectivesStayInStep) {
  run([&](Communicator& comm) {
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

TEST_P(HostCommunicator, ARankThatIsLateIsNamedWithTheLimitOfTheRunningGroup) {
  if (size() == 1) return;
  std::atomic<bool> is_over = false;
  run([&](Communicator& comm) {
    comm.barrier(0);
    comm.set_time_limit({std::chrono::milliseconds(150), "--step-timeout"});
    if (comm.rank() > 0) return is_over.wait(false);
    try {
      comm.barrier(0);
      ADD_FAILURE() << "nobody was late";
    } catch (const RankFailure& failure) {
      EXPECT_EQ(failure.rank(), 1);
      EXPECT_THAT(failure.what(), testing::HasSubstr("didn't come to a collective within 0.15 s (--step-timeout)"));
    }
    is_over = true;
    is_over.notify_all();
  });
}

std::string group_label(const testing::TestParamInfo<Group>& info) {
  return concat(info.param.kind == RankKind::shm ? "shm" : "tcp", info.param.size);
}

INSTANTIATE_TEST_SUITE_P(Groups, HostCommunicator,
                         testing::Values(Group{RankKind::shm, 1}, Group{RankKind::shm, 2}, Group{RankKind::shm, 3},
                                         Group{RankKind::shm, 4}, Group{RankKind::shm, 8}, Group{RankKind::tcp, 1},
                                         Group{RankKind::tcp, 2}, Group{RankKind::tcp, 3}, Group{RankKind::tcp, 4},
                                         Group{RankKind::tcp, 8}),
                         group_label);

TEST(SumKernels, InstructionSetsAgree) {
  for (const DType dtype : kDTypes) {
    const std::int64_t count = 1003;
    std::vector<std::vector<std::byte>> parts;
    std::vector<const void*> inputs;
    for (int rank = 0; rank < 5; ++rank) parts.push_back(random_part(rank, count, dtype));
    for (const auto& part : parts) inputs.push_back(part.data());
    for (const CpuIsa isa : supported_base_isas()) {
      std::vector<std::byte> out(parts[0].size());
      sum_kernel(isa)(inputs.data(), 5, count, dtype, out.data());
      EXPECT_TRUE(out == expected_sum(5, count, dtype)) << cpu_isa_label(isa);
    }
  }
}

}  // namespace
}  // namespace minisgl
