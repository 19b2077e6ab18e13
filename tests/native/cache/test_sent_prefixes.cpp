// What a router remembers, by example and under random use beside plain lists.
#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "cache/sent_prefixes.h"
#include "core/error.h"

namespace minisgl {
namespace {

using Tokens = std::vector<std::int32_t>;
using Keys = std::vector<std::uint64_t>;

constexpr auto kBlock = static_cast<std::int64_t>(SentPrefixes::kBlock);

// Blocks of tokens, each of one token repeated.
Tokens blocks(const std::vector<std::int32_t>& values) {
  Tokens tokens;
  for (const std::int32_t value : values) tokens.insert(tokens.end(), SentPrefixes::kBlock, value);
  return tokens;
}

Keys keys_of(const SentPrefixes& sent, const Tokens& tokens, std::string_view space = "") {
  Keys keys;
  sent.extend(space, tokens, keys);
  return keys;
}

TEST(SentPrefixes, KeysStandForSpaceAndAllTokensBefore) {
  const SentPrefixes sent;
  const Keys keys = keys_of(sent, blocks({1, 2, 3}));
  EXPECT_EQ(std::ssize(keys), 3);
  EXPECT_EQ(keys_of(sent, blocks({1, 2, 4}))[1], keys[1]);
  EXPECT_NE(keys_of(sent, blocks({1, 2, 4}))[2], keys[2]);
  EXPECT_NE(keys_of(sent, blocks({4, 2, 3}))[2], keys[2]);
  EXPECT_NE(keys_of(sent, blocks({1, 2, 3}), "salt")[0], keys[0]);
  for (std::size_t i = 0; i < SentPrefixes::kBlock; ++i) {  // no token of a block is left out
    Tokens other = blocks({1});
    other[i] = 7;
    EXPECT_NE(keys_of(sent, other)[0], keys[0]) << i;
  }
  Tokens begun = blocks({1, 2, 3});
  begun.pop_back();
  Keys known = keys_of(sent, begun);
  EXPECT_EQ(known, Keys(keys.begin(), keys.begin() + 2));
  sent.extend("", blocks({3}), known);
  EXPECT_EQ(known, keys);
}

TEST(SentPrefixes, ChoosesByWhatIsLeftToDo) {
  SentPrefixes sent;
  for (int replica = 0; replica < 3; ++replica) sent.add(replica, 10);
  const Keys keys = keys_of(sent, blocks({1, 2, 3, 4}));
  EXPECT_EQ(sent.insert(1, keys), 0);
  EXPECT_EQ(sent.insert(2, std::span(keys).first(2)), 0);
  auto choice = sent.choose(keys, {});
  EXPECT_EQ(choice.least, 0);
  EXPECT_EQ(choice.best, 1);
  EXPECT_EQ(choice.num_blocks, 4);
  sent.set_load(1, 3 * kBlock);
  choice = sent.choose(keys, {});
  EXPECT_EQ(choice.best, 2);
  EXPECT_EQ(choice.num_blocks, 2);
  const std::vector<int> excluded = {2, 0};
  choice = sent.choose(keys, excluded);
  EXPECT_EQ(choice.least, 1);
  EXPECT_EQ(choice.num_replicas, 1);
  sent.remove(1);
  EXPECT_EQ(sent.choose(keys, excluded).least, -1);
  EXPECT_THROW(sent.insert(1, keys), std::exception);
  EXPECT_THROW(sent.add(2, 1), std::exception);
  EXPECT_THROW(sent.add(-1, 1), std::exception);
}

TEST(SentPrefixes, AmongEqualOnesTheOneGoesThatWaitedLongest) {
  SentPrefixes sent;
  for (int replica = 0; replica < 3; ++replica) sent.add(replica, 10);
  for (const int expected : {0, 1, 2, 0, 1}) {
    const int least = sent.choose({}, {}).least;
    EXPECT_EQ(least, expected);
    sent.take_turn(least);
  }
}

// The same with lists: per replica its keys, the latest first.
struct Plain {
  std::map<int, std::pair<std::int64_t, std::list<std::uint64_t>>> replicas;

  std::int64_t matched(int replica, const Keys& keys) const {
    const auto& known = replicas.at(replica).second;
    const auto end =
        std::ranges::find_if(keys, [&](std::uint64_t key) { return std::ranges::find(known, key) == known.end(); });
    return end - keys.begin();
  }
  void insert(int replica, const Keys& keys) {
    auto& [room, known] = replicas.at(replica);
    const auto end = keys.begin() + std::min<std::ptrdiff_t>(std::ssize(keys), room);
    for (auto key = end; key != keys.begin();) {
      known.remove(*--key);
      known.push_front(*key);
    }
    while (std::ssize(known) > room) known.pop_back();
  }
};

TEST(SentPrefixes, RandomUseAgreesWithPlainLists) {
  std::mt19937 random(0);
  const auto draw = [&](int count) { return static_cast<int>(random() % static_cast<unsigned>(count)); };
  SentPrefixes sent;
  Plain plain;
  std::map<int, std::int64_t> loads;
  for (int i = 0; i < 6000; ++i) {
    const int replica = draw(6);
    if (!plain.replicas.contains(replica)) {
      const int room = draw(40);
      sent.add(replica, room);
      plain.replicas[replica].first = room;
      loads[replica] = 0;
    }
    if (draw(60) == 0) {
      sent.remove(replica);
      plain.replicas.erase(replica);
      loads.erase(replica);
      continue;
    }
    std::vector<std::int32_t> values(static_cast<std::size_t>(draw(9)));
    for (auto& value : values) value = draw(3);
    const Keys keys = keys_of(sent, blocks(values), draw(2) ? "a" : "b");
    const std::int64_t before = plain.matched(replica, keys);
    EXPECT_EQ(sent.matched(replica, keys), before);
    sent.set_load(replica, loads[replica] = draw(5) * kBlock);
    const auto choice = sent.choose(keys, {});
    std::int64_t best = loads[choice.best] - kBlock * plain.matched(choice.best, keys);
    EXPECT_EQ(choice.num_blocks, plain.matched(choice.best, keys));
    for (const auto& [other, load] : loads) {
      EXPECT_LE(best, load - kBlock * plain.matched(other, keys));
      EXPECT_LE(loads[choice.least], load);
    }
    EXPECT_EQ(sent.insert(replica, keys), before);
    plain.insert(replica, keys);
    EXPECT_EQ(sent.num_blocks(replica), std::ssize(plain.replicas[replica].second));
    if (i % 50 == 0) sent.check();
  }
}

}  // namespace
}  // namespace minisgl
