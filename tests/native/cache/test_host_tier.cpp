// The host tier under random use beside plain maps: what the pages of both tiers hold, and which prefixes the host has.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "cache/host_tier.h"

namespace minisgl {
namespace {

using Tokens = std::vector<std::int32_t>;
using Pages = std::vector<PageId>;

// Sequences that come, compute and go on a device of few pages, and the copies between it and the host.
class Tiers {
 public:
  static constexpr int kPage = 2;
  static constexpr std::int64_t kDevicePages = 20;

  Tiers(unsigned seed, std::int64_t host_pages)
      : never_full_(host_pages > 1000), random_(seed), tier_(tree_, pages_, host_pages, kPage) {
    tier_.set_ready(host_pages / 2);
  }

  void begin() {
    User user;
    user.tokens.resize(static_cast<std::size_t>(1 + below(16)));
    for (std::int32_t& token : user.tokens) token = below(2);
    tree_.take({}, user.tokens, user.pages);
    user.num_known = std::ssize(user.pages);
    for (std::int64_t i = 0; i < user.num_known; ++i) expect_device(user.pages, i, user.tokens);
    const auto found = tier_.find({}, user.tokens, user.num_known);
    std::int64_t saved = 0;  // whole pages that the host must have
    while (saved_.contains(prefix(user.tokens, saved + 1)) && (saved + 1) * kPage <= std::ssize(user.tokens)) ++saved;
    if (never_full_) {
      ASSERT_EQ(found.num_pages, saved);
    }
    const std::int64_t count = found.num_pages - user.num_known;
    if (count > 0 && !found.is_coming && count <= tree_.num_available() && below(4) > 0) {
      tier_.bring({}, user.tokens, user.pages);
      num_brought_ += count;
      return;
    }
    const std::int64_t missing = (std::ssize(user.tokens) + kPage - 1) / kPage - user.num_known;
    if (!tree_.allocate(missing, user.pages)) {
      tree_.release(user.pages);
      return;
    }
    for (std::int64_t i = user.num_known; i < std::ssize(user.pages); ++i) {
      device_[user.pages[static_cast<std::size_t>(i)]] = prefix(user.tokens, i + 1);
    }
    users_.push_back(std::move(user));
  }

  void end() {
    if (users_.empty()) return;
    std::swap(users_[random_() % users_.size()], users_.back());
    User user = std::move(users_.back());
    users_.pop_back();
    Pages replaced;
    tree_.insert({.space = {}, .tokens = user.tokens, .num_known = user.num_known, .keep_begun = true, .now = ++now_},
                 user.pages, replaced);
    tree_.release(replaced);
    tree_.release(user.pages);
  }

  void order() {
    const TierCopies* copies = tier_.next_copies(below(kDevicePages));
    if (copies == nullptr) return;
    ASSERT_LE(std::ssize(copies->pages), HostTier::kMostPages);
    ASSERT_EQ(copies->number, ++num_ordered_);
    copies_.push_back(*copies);
    num_saved_ += copies->to_host ? std::ssize(copies->pages) : 0;
    if (!copies->to_host) return;
    for (const PagePair& pair : copies->pages) saved_.insert(device_.at(pair.source));
  }

  // The oldest copies are made when they are done, which is the latest time.
  void finish() {
    if (copies_.empty()) return;
    for (const auto& [source, destination] : copies_.front().pages) {
      copies_.front().to_host ? host_[destination] = device_.at(source) : device_[destination] = host_.at(source);
    }
    tier_.finish(copies_.front().number, ++now_);
    copies_.pop_front();
  }

  void get_ready() { tier_.set_ready(tier_.num_ready() + (tier_.num_total() - tier_.num_ready()) / 2); }

  void check() {
    std::vector<std::uint32_t> owners(kDevicePages, 0);
    for (const User& user : users_) {
      for (const PageId page : user.pages) ++owners[static_cast<std::size_t>(page)];
    }
    tier_.check(owners);
    tree_.check(owners);
    pages_.check(owners);
  }

  void drain() {
    while (!users_.empty()) end();
    for (int i = 0; i < 10'000 && tier_.is_busy(); ++i) {
      order();
      finish();
    }
    ASSERT_FALSE(tier_.is_busy());
    ASSERT_EQ(tree_.num_available(), kDevicePages);
    check();
  }

  std::int64_t num_saved() const { return num_saved_; }
  std::int64_t num_brought() const { return num_brought_; }
  std::uint64_t num_evicted() const { return tier_.tree().num_evicted(); }

 private:
  struct User {
    Tokens tokens = {};
    Pages pages = {};
    std::int64_t num_known = 0;
  };

  std::int32_t below(std::int64_t n) { return static_cast<std::int32_t>(random_() % static_cast<std::uint64_t>(n)); }
  static Tokens prefix(const Tokens& tokens, std::int64_t num_pages) {
    const auto count = std::min<std::int64_t>(num_pages * kPage, std::ssize(tokens));
    return {tokens.begin(), tokens.begin() + count};
  }
  void expect_device(const Pages& pages, std::int64_t at, const Tokens& tokens) {
    ASSERT_EQ(device_.at(pages[static_cast<std::size_t>(at)]), prefix(tokens, at + 1)) << "page " << at;
  }

  const bool never_full_;
  std::mt19937 random_;
  PageAllocator pages_{kDevicePages};
  PrefixTree tree_{pages_, kPage};
  HostTier tier_;
  std::vector<User> users_;
  std::deque<TierCopies> copies_;           // under way
  std::map<PageId, Tokens> device_, host_;  // what each page holds: a prefix
  std::set<Tokens> saved_;                  // what was ever copied to the host
  std::uint64_t now_ = 0, num_ordered_ = 0;
  std::int64_t num_saved_ = 0, num_brought_ = 0;
};

class HostTierProperties : public testing::TestWithParam<std::tuple<unsigned, std::int64_t>> {};

TEST_P(HostTierProperties, HoldsWhatTheDeviceGaveUp) {
  const auto [seed, host_pages] = GetParam();
  Tiers tiers(seed, host_pages);
  std::mt19937 random(seed + 1000);
  for (int round = 0; round < 3000; ++round) {
    switch (random() % 5) {
      case 0: tiers.begin(); break;
      case 1: tiers.end(); break;
      case 2: tiers.order(); break;
      case 3: tiers.finish(); break;
      default:
        if (random() % 50 == 0) tiers.get_ready();
    }
    if (HasFatalFailure()) return;
    ASSERT_NO_THROW(tiers.check()) << "round " << round;
  }
  ASSERT_NO_FATAL_FAILURE(tiers.drain());
  EXPECT_GT(tiers.num_saved(), 30);
  EXPECT_GT(tiers.num_brought(), 30);
  EXPECT_EQ(tiers.num_evicted() > 0, host_pages < 1000);
}

INSTANTIATE_TEST_SUITE_P(Seeds, HostTierProperties,
                         testing::Combine(testing::Range(0u, 6u), testing::Values(24, 5000)));

// Everything is on its way at once, and nothing is asked of more pages than there are.
TEST(HostTier, APathLongerThanTheTierIsKeptAsFarAsItGoes) {
  PageAllocator pages(600);
  PrefixTree tree(pages, 1);
  HostTier tier(tree, pages, 400, 1);
  tier.set_ready(400);
  Tokens tokens(600);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i);
  Pages mine, replaced;
  ASSERT_TRUE(tree.allocate(600, mine));
  tree.insert({.space = {}, .tokens = tokens, .now = 1}, mine, replaced);
  tree.release(mine);
  std::int64_t copied = 0;
  for (int i = 0; i < 10; ++i) {
    const TierCopies* copies = tier.next_copies(600);
    if (copies == nullptr) break;
    copied += std::ssize(copies->pages);
    tier.finish(copies->number, 2);
  }
  EXPECT_EQ(copied, 400);
  EXPECT_EQ(tier.find({}, tokens, 0).num_pages, 400);
  EXPECT_EQ(tree.num_available(), 600);
}

}  // namespace
}  // namespace minisgl
