// The order of those that wait: classes, equal shares, arrival; and what no client can gain by.
#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <map>
#include <random>
#include <vector>

#include "sched/fair_queue.h"

namespace minisgl {
namespace {

using std::chrono::seconds;

// A queue whose turns are numbered in the order of their arrival.
struct Queue {
  FairQueue queue;
  std::list<Turn> turns;

  Turn& arrive(const Standing& standing, FairQueue::Time now = {}) {
    queue.set_time(now);
    Turn& turn = turns.emplace_back(turns.size());
    queue.arrive(turn, standing, now);
    return turn;
  }
  // Begins with the first, charges it and ends it. Returns its number.
  std::uint64_t serve(std::int64_t tokens, FairQueue::Time now = {}) {
    queue.set_time(now);
    Turn& turn = *queue.first();
    queue.begin(turn);
    FairQueue::charge(turn, tokens);
    queue.leave(turn);
    return turn.id;
  }
  std::vector<std::uint64_t> serve_all(std::int64_t tokens = 1) {
    std::vector<std::uint64_t> order;
    while (!queue.empty()) order.push_back(serve(tokens));
    return order;
  }
};

using Order = std::vector<std::uint64_t>;

TEST(FairQueue, EqualsAreServedInOrderOfArrival) {
  Queue queue;
  for (int i = 0; i < 5; ++i) queue.arrive({.priority = 3, .share = 1, .user = 7});
  EXPECT_EQ(queue.serve_all(), (Order{0, 1, 2, 3, 4}));
}

TEST(FairQueue, LowerPrioritiesGoFirst) {
  Queue queue;
  for (const std::int32_t priority : {0, 5, -5, 0, 5, -5}) queue.arrive({.priority = priority});
  EXPECT_EQ(queue.queue.waiting_by_priority(),
            (std::vector<std::pair<std::int32_t, std::int64_t>>{{-5, 2}, {0, 2}, {5, 2}}));
  EXPECT_EQ(queue.serve_all(), (Order{2, 5, 0, 3, 1, 4}));
}

TEST(FairQueue, WaitingRaisesAClass) {
  Queue queue;
  FairQueue::Time now = {};
  Turn& low = queue.arrive({.priority = 2}, now);
  // A request of priority 0 comes every second, and one is served: the first one waits for two agings.
  int served = 0;
  for (; served < 1000; ++served) {
    queue.arrive({.priority = 0}, now);
    if (queue.serve(1, now) == low.id) break;
    now += seconds(1);
  }
  EXPECT_EQ(served, 2 * FairQueue::kAging / seconds(1));
}

TEST(FairQueue, WaitingRaisesNobodyAboveTheFirstClass) {
  Queue queue;
  const Turn& old = queue.arrive({.priority = 1});
  queue.queue.set_time(FairQueue::Time() + 1000 * FairQueue::kAging);
  EXPECT_EQ(queue.queue.class_of(old), 1);
  queue.arrive({.priority = 0}, FairQueue::Time() + 1000 * FairQueue::kAging);
  EXPECT_EQ(queue.queue.class_of(old), 0);
}

TEST(FairQueue, WhatWasWaitedBeforeCounts) {
  Queue queue;
  Turn& low = queue.arrive({.priority = 4});
  queue.arrive({.priority = 0});
  const FairQueue::Time later = FairQueue::Time() + 2 * FairQueue::kAging;
  queue.queue.set_time(later);
  queue.queue.begin(low);
  EXPECT_EQ(queue.queue.class_of(low), 2);
  queue.queue.set_time(later + 10 * FairQueue::kAging);
  EXPECT_EQ(queue.queue.class_of(low), 2);  // it runs
  queue.queue.give_way(low);
  EXPECT_EQ(queue.queue.class_of(low), 2);
  queue.queue.set_time(later + 11 * FairQueue::kAging);
  EXPECT_EQ(queue.queue.class_of(low), 1);
}

TEST(FairQueue, SharesTakeTurns) {
  Queue queue;
  for (int i = 0; i < 4; ++i) queue.arrive({.share = 1});
  for (int i = 0; i < 2; ++i) queue.arrive({.share = 2});
  EXPECT_EQ(queue.serve_all(10), (Order{0, 4, 1, 5, 2, 3}));
}

TEST(FairQueue, UsersDivideTheirSharesPartAlone) {
  // Share 1 has four users, share 2 one: each share is served as much, and each user of share 1 a quarter of that.
  Queue queue;
  std::map<std::uint64_t, Standing> standings;
  for (int i = 0; i < 400; ++i) {
    const Standing standing{.share = 1, .user = 1 + static_cast<std::uint64_t>(i) % 4};
    standings[queue.arrive(standing).id] = standing;
    standings[queue.arrive({.share = 2}).id] = {.share = 2};
  }
  std::map<std::pair<std::int64_t, std::uint64_t>, int> served;
  for (int i = 0; i < 400; ++i) {
    const Standing& standing = standings.at(queue.serve(10));
    ++served[{standing.share, standing.user}];
  }
  EXPECT_EQ((served[{2, 0}]), 200);
  for (std::uint64_t user = 1; user <= 4; ++user) EXPECT_EQ((served[{1, user}]), 50);
}

TEST(FairQueue, WhoWasAwayHasNoCredit) {
  Queue queue;
  queue.arrive({.share = 1});
  queue.arrive({.share = 2});
  queue.serve_all(10);
  for (int i = 0; i < 100; ++i) {  // share 2 is away
    queue.arrive({.share = 1});
    queue.serve(1000);
  }
  for (int i = 0; i < 10; ++i) queue.arrive({.share = 1});
  for (int i = 0; i < 10; ++i) queue.arrive({.share = 2});
  int of_second = 0;
  for (int i = 0; i < 10; ++i) of_second += queue.serve(1000) >= 112;
  EXPECT_EQ(of_second, 5);
}

TEST(FairQueue, WhoHadMoreStillOwesItAfterAShortPause) {
  Queue queue;
  for (int i = 0; i < 3; ++i) queue.arrive({.share = 2});
  queue.arrive({.share = 1});
  EXPECT_EQ(queue.serve(1), 0u);
  EXPECT_EQ(queue.serve(1000), 3u);
  queue.arrive({.share = 1});  // number 4
  EXPECT_EQ(queue.serve_all(100), (Order{1, 2, 4}));
}

TEST(FairQueue, BetweenEqualsWhoHasLessAtWorkIsFirst) {
  Queue queue;
  Turn& running = queue.arrive({.share = 1});
  queue.arrive({.share = 1});
  queue.queue.begin(running);
  Turn& newcomer = queue.arrive({.share = 2});
  EXPECT_EQ(queue.queue.first(), &newcomer);
  queue.queue.leave(running);
}

TEST(FairQueue, APreemptedOneKeepsItsPlace) {
  Queue queue;
  for (int i = 0; i < 3; ++i) queue.arrive({});
  Turn& first = *queue.queue.first();
  queue.queue.begin(first);
  queue.queue.begin(*queue.queue.first());
  queue.queue.give_way(first);
  EXPECT_EQ(queue.queue.first(), &first);
}

TEST(FairQueue, ItsTableOfUsersIsBounded) {
  Queue queue;
  queue.arrive({.share = 1, .user = 1});
  queue.serve(1000000);
  for (std::uint64_t user = 2; user < 20 * FairQueue::kMostIdle; ++user) {
    queue.arrive({.share = 1, .user = user});
    queue.serve(1);
  }
  EXPECT_LE(queue.turns.size(), 20 * FairQueue::kMostIdle);
  EXPECT_LE(queue.queue.num_known_users(1), FairQueue::kMostIdle);
}

// Whatever comes and goes, shares that always have something waiting are served alike, but for one request each; so are
// the users of a share.
class FairQueueProperties : public testing::TestWithParam<unsigned> {};

TEST_P(FairQueueProperties, BackloggedSharesConverge) {
  std::mt19937 random(GetParam());
  constexpr std::int64_t kLongest = 500, kShares = 4;
  Queue queue;
  std::map<std::uint64_t, Standing> standings;
  std::map<std::int64_t, std::int64_t> waiting, served;
  const auto submit = [&](std::int64_t share) {
    const Standing standing{.share = share, .user = random() % (1 + static_cast<unsigned>(share))};
    standings[queue.arrive(standing).id] = standing;
    ++waiting[share];
  };
  for (int round = 0; round < 4000; ++round) {
    for (std::int64_t share = 1; share <= kShares; ++share) {
      while (waiting[share] < 1 + static_cast<std::int64_t>(random() % 8)) submit(share);
    }
    if (random() % 10 == 0) submit(kShares + 1 + static_cast<std::int64_t>(random() % 20));  // others come now and then
    const std::int64_t tokens = 1 + static_cast<std::int64_t>(random() % kLongest);
    const std::int64_t share = standings.at(queue.serve(tokens)).share;
    --waiting[share];
    served[share] += tokens;
    std::int64_t least = served[1], most = served[1];
    for (std::int64_t one = 1; one <= kShares; ++one) {
      least = std::min(least, served[one]);
      most = std::max(most, served[one]);
    }
    ASSERT_LE(most - least, 2 * kLongest);
  }
}

TEST_P(FairQueueProperties, EverybodyIsServed) {
  // Floods of the first class and of other shares: a request waits at most as long as its class needs to rise, and then
  // for its turn.
  std::mt19937 random(GetParam());
  Queue queue;
  FairQueue::Time now = {};
  std::map<std::uint64_t, FairQueue::Time> came;
  std::map<std::uint64_t, std::int32_t> priorities;
  for (int round = 0; round < 3000; ++round) {
    now += seconds(1);
    for (int i = 0; i < 2; ++i) {
      if (queue.queue.waiting_by_priority().size() > 0 && came.size() > 40 && random() % 4 != 0) break;
      const auto priority = random() % 3 == 0 ? static_cast<std::int32_t>(random() % 4) : 0;
      const Standing standing{
          .priority = priority, .share = static_cast<std::int64_t>(random() % 3), .user = random() % 3};
      const std::uint64_t id = queue.arrive(standing, now).id;
      came[id] = now, priorities[id] = priority;
    }
    const std::uint64_t id = queue.serve(1 + static_cast<std::int64_t>(random() % 20), now);
    ASSERT_LE(now - came.at(id), priorities.at(id) * FairQueue::kAging + seconds(400));
    came.erase(id);
  }
  for (const auto& [id, time] : came) ASSERT_LE(now - time, 3 * FairQueue::kAging + seconds(400));
}

INSTANTIATE_TEST_SUITE_P(Seeds, FairQueueProperties, testing::Range(0u, 20u));

}  // namespace
}  // namespace minisgl
