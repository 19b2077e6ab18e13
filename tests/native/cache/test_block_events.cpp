// What the prefix tree says of its pages, by example, and replayed beside the tree under random use.
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

#include "cache/block_events.h"
#include "cache/host_tier.h"
#include "cache/prefix_tree.h"
#include "core/xxh64.h"

namespace minisgl {
namespace {

using Kind = BlockEvent::Kind;
using Tokens = std::vector<std::int32_t>;
using Hashes = std::vector<std::uint64_t>;

std::uint64_t hash_of(const Tokens& tokens, std::uint64_t seed) {
  return xxh64(std::as_bytes(std::span(tokens)), seed);
}

// A tree over few pages of 4 tokens that says what it has.
struct LoudTree {
  PageAllocator pages{8};
  PrefixTree tree{pages, 4};
  BlockEvents events;

  LoudTree() { tree.report_to(events, "GPU"); }
  void run(const Tokens& tokens, const PrefixSpace& space = {}, bool keep_begun = false) {
    std::vector<PageId> mine, replaced;
    tree.take(space, tokens, mine);
    const auto known = std::ssize(mine);
    ASSERT_TRUE(tree.allocate((std::ssize(tokens) + 3) / 4 - known, mine));
    tree.insert({.space = space, .tokens = tokens, .num_known = known, .keep_begun = keep_begun}, mine, replaced);
    tree.release(mine);
  }
};

TEST(BlockEvents, AChainIsOneEventWithHashesOverAllBefore) {
  LoudTree loud;
  loud.run({1, 2, 3, 4, 5, 6, 7, 8, 9}, {}, true);
  auto events = loud.events.take();
  ASSERT_EQ(events.size(), 1u);
  const std::uint64_t first = hash_of({1, 2, 3, 4}, 0), second = hash_of({5, 6, 7, 8}, first);
  EXPECT_EQ(events[0].kind, Kind::stored);
  EXPECT_EQ(events[0].medium, "GPU");
  EXPECT_EQ(events[0].hashes, (Hashes{first, second}));
  EXPECT_EQ(events[0].parent, std::nullopt);
  EXPECT_EQ(events[0].tokens, (Tokens{1, 2, 3, 4, 5, 6, 7, 8}));  // no block that isn't full
  loud.run({1, 2, 3, 4, 7, 7, 7, 7});
  events = loud.events.take();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].hashes, Hashes{hash_of({7, 7, 7, 7}, first)});
  EXPECT_EQ(events[0].parent, first);
  loud.run({1, 2, 3, 4, 7, 7, 7, 7});  // known
  EXPECT_TRUE(loud.events.take().empty());
}

TEST(BlockEvents, SpacesHaveHashesOfTheirOwn) {
  LoudTree loud;
  for (const PrefixSpace& space :
       {PrefixSpace{}, PrefixSpace{.adapter = 1}, PrefixSpace{.salt = {5, 0}}, PrefixSpace{.salt = {0, 5}}}) {
    loud.run({1, 2, 3, 4}, space);
  }
  std::set<std::uint64_t> hashes;
  for (const BlockEvent& event : loud.events.take()) hashes.insert(event.hashes.begin(), event.hashes.end());
  EXPECT_EQ(hashes.size(), 4u);
  EXPECT_TRUE(hashes.contains(hash_of({1, 2, 3, 4}, 0)));
}

TEST(BlockEvents, TheHostTierHasAMediumOfItsOwn) {
  LoudTree loud;
  HostTier host(loud.tree, loud.pages, 8, 4);
  host.report_to(loud.events, "CPU");
  host.set_ready(8);
  loud.run({1, 2, 3, 4, 5, 6, 7, 8});
  const TierCopies* copies = host.next_copies(8);
  ASSERT_NE(copies, nullptr);
  host.finish(copies->number, 1);
  const auto events = loud.events.take();
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].medium, "GPU");
  EXPECT_EQ(events[1].medium, "CPU");
  EXPECT_EQ(events[1].hashes, events[0].hashes);
  EXPECT_EQ(events[1].tokens, events[0].tokens);
}

TEST(BlockEvents, WhatNobodyTakesIsLostAndSaysSo) {
  BlockEvents events;
  const Tokens tokens{1, 2, 3, 4};
  for (std::size_t i = 0; i <= BlockEvents::kMostBlocks + 5; ++i) events.stored("GPU", std::nullopt, i, tokens, {});
  auto left = events.take();
  ASSERT_EQ(left.size(), 1u);
  EXPECT_EQ(left[0].kind, Kind::cleared);
  events.removed("GPU", 1);
  events.removed("GPU", 2);
  left = events.take();
  ASSERT_EQ(left.size(), 1u);
  EXPECT_EQ(left[0].hashes, (Hashes{1, 2}));
}

TEST(BlockEvents, WhoeverListensKnowsWhatTheTreeHas) {
  std::mt19937 random(0);
  LoudTree loud;
  std::set<std::uint64_t> known;
  for (int i = 0; i < 3000; ++i) {
    Tokens tokens(4 * (1 + random() % 5));
    for (std::size_t block = 0; block < tokens.size(); block += 4) {
      std::fill_n(tokens.begin() + static_cast<std::ptrdiff_t>(block), 4, static_cast<std::int32_t>(random() % 3));
    }
    loud.run(tokens);
    for (const BlockEvent& event : loud.events.take()) {
      EXPECT_TRUE(!event.parent || known.contains(*event.parent));
      for (const std::uint64_t hash : event.hashes) {
        if (event.kind == Kind::stored) {
          EXPECT_TRUE(known.insert(hash).second);
        } else {
          EXPECT_EQ(known.erase(hash), 1u);
        }
      }
    }
    EXPECT_EQ(std::ssize(known), loud.tree.num_pages());
  }
}

}  // namespace
}  // namespace minisgl
