// The prefix tree by example, and under random use beside a plain map of prefixes.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "cache/prefix_tree.h"
#include "core/error.h"

namespace minisgl {
namespace {

using Tokens = std::vector<std::int32_t>;
using Pages = std::vector<PageId>;

// A tree over few pages of 4 tokens, and sequences that come and go.
struct SmallTree {
  PageAllocator pages{8};
  PrefixTree tree{pages, 4};
  std::uint64_t now = 0;

  Pages take(const Tokens& tokens, const PrefixSpace& space = {}) {
    Pages taken;
    tree.take(space, tokens, taken);
    return taken;
  }
  // Computes a sequence that begins with what the tree has, and leaves.
  Pages run(const Tokens& tokens, const PrefixSpace& space = {}) {
    Pages mine = take(tokens, space), replaced;
    const auto known = std::ssize(mine);
    EXPECT_TRUE(tree.allocate((std::ssize(tokens) + 3) / 4 - known, mine));
    tree.insert({.space = space, .tokens = tokens, .num_known = known, .keep_begun = true, .now = ++now}, mine,
                replaced);
    EXPECT_TRUE(replaced.empty());
    Pages result = mine;
    tree.release(mine);
    check();
    return result;
  }
  void check(const std::vector<Pages>& held = {}) const {
    std::vector<std::uint32_t> owners(static_cast<std::size_t>(pages.num_total()));
    for (const Pages& list : held) {
      for (const PageId page : list) ++owners[static_cast<std::size_t>(page)];
    }
    tree.check(owners);
    pages.check(owners);
  }
};

TEST(PrefixTree, FindsTheLongestPrefixInPages) {
  SmallTree small;
  const Pages first = small.run({1, 2, 3, 4, 5, 6, 7, 8, 9});
  EXPECT_EQ(small.tree.num_pages(), 3);
  EXPECT_EQ(small.tree.num_available(), 8);
  const Pages taken = small.take({1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 1, 1});
  EXPECT_EQ(taken, (Pages{first[0], first[1]}));
  EXPECT_EQ(small.tree.num_available(), 6);
  EXPECT_EQ(small.take({1, 2, 3, 4, 5, 6, 7}), (Pages{first[0]}));
  EXPECT_TRUE(small.take({1, 2, 3}).empty());
  EXPECT_TRUE(small.take({2, 2, 3, 4, 5, 6, 7, 8}).empty());
  EXPECT_TRUE(small.take({5, 6, 7, 8}).empty());  // the same tokens behind others are another prefix
}

TEST(PrefixTree, KeepsSpacesApart) {
  SmallTree small;
  const Tokens tokens{1, 2, 3, 4};
  small.run(tokens, {.adapter = 1});
  small.run(tokens, {.adapter = 1, .salt = {5, 0}});
  small.run(tokens, {.adapter = 1, .salt = {0, 5}});
  EXPECT_EQ(small.tree.num_pages(), 3);
  EXPECT_TRUE(small.take(tokens).empty());
  EXPECT_TRUE(small.take(tokens, {.adapter = 2}).empty());
  EXPECT_TRUE(small.take(tokens, {.adapter = 1, .salt = {5, 5}}).empty());
  EXPECT_EQ(small.take(tokens, {.adapter = 1, .salt = {5, 0}}).size(), 1u);
}

TEST(PrefixTree, GivesUpLeavesInTheOrderOfTheirLastUse) {
  SmallTree small;
  const Tokens a{1, 1, 1, 1, 2, 2, 2, 2}, b{1, 1, 1, 1, 3, 3, 3, 3}, c{4, 4, 4, 4};
  small.run(a);
  small.run(b);
  small.run(c);
  small.tree.release(small.take(a));
  EXPECT_EQ(small.tree.num_pages(), 4);
  Pages more;
  ASSERT_TRUE(small.tree.allocate(5, more));  // b's own page
  EXPECT_EQ(small.take(b).size(), 1u);
  EXPECT_EQ(small.tree.num_evicted(), 1u);
  ASSERT_TRUE(small.tree.allocate(1, more));  // c
  EXPECT_TRUE(small.take(c).empty());
  ASSERT_TRUE(small.tree.allocate(1, more));  // a's last; the first is in use since
  EXPECT_EQ(small.take(a).size(), 1u);
  EXPECT_FALSE(small.tree.allocate(1, more));
  EXPECT_EQ(small.tree.num_evicted(), 3u);
}

TEST(PrefixTree, KeepsWhatSeveralBeginWithLongerThanTheirOwn) {
  SmallTree small;
  small.run({1, 1, 1, 1, 2, 2, 2, 2});
  small.run({1, 1, 1, 1, 3, 3, 3, 3});
  for (std::int32_t i = 10; i < 20; ++i) small.run({i, i, i, i, i, i, i, i});
  EXPECT_EQ(small.take({1, 1, 1, 1, 2, 2, 2, 2}).size(), 1u);
}

TEST(PrefixTree, WhatNobodyBeginsWithAnyMoreGoes) {
  SmallTree small;
  small.run({1, 1, 1, 1, 2, 2, 2, 2});
  small.run({1, 1, 1, 1, 3, 3, 3, 3});
  for (std::int32_t i = 10; i < 30; ++i) small.run({i, i, i, i, i, i, i, i});
  EXPECT_TRUE(small.take({1, 1, 1, 1}).empty());
}

TEST(PrefixTree, AConversationThatGoesOnPartsNowhere) {
  SmallTree small;
  small.run({1, 1, 1, 1, 2, 2});
  small.run({1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3});
  Pages more;
  ASSERT_TRUE(small.tree.allocate(7, more));  // its tail is given up, and computed again
  small.tree.release(more);
  small.run({1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3});
  for (std::int32_t i = 10; i < 14; ++i) small.run({i, i, i, i, i, i, i, i});
  EXPECT_TRUE(small.take({1, 1, 1, 1}).empty());
}

TEST(PrefixTree, APageComputedTwiceIsReplaced) {
  SmallTree small;
  const Tokens tokens{1, 2, 3, 4, 5, 6, 7, 8};
  Pages first, second, replaced;
  ASSERT_TRUE(small.tree.allocate(2, first) && small.tree.allocate(2, second));
  const Pages own = second;
  EXPECT_EQ(small.tree.insert({.space = {}, .tokens = std::span(tokens).first(4), .now = 1}, first, replaced), 1);
  EXPECT_EQ(small.tree.insert({.space = {}, .tokens = tokens, .now = 1}, second, replaced), 2);
  EXPECT_EQ(replaced, (Pages{own[0]}));
  EXPECT_EQ(second, (Pages{first[0], own[1]}));
  small.check({first, second, replaced});
  small.tree.release(first);
  EXPECT_EQ(small.pages.num_owners(second[0]), 2u);  // the tree and the second
}

TEST(PrefixTree, BegunPagesAreFoundAndSuperseded) {
  SmallTree small;
  const Pages run = small.run({1, 1, 1, 1, 5, 6});
  EXPECT_EQ(small.tree.num_pages(), 2);
  const Pages taken = small.take({1, 1, 1, 1, 5, 6, 7, 8});
  EXPECT_EQ(taken.size(), 1u);  // the other is no full page
  small.tree.release(taken);
  const auto find = [&](const Tokens& rest, std::uint64_t now) { return small.tree.find_begun(run[0], rest, now); };
  EXPECT_EQ(find({5, 6, 7}, 2).page, run[1]);
  EXPECT_EQ(find({5, 6, 7}, 2).num_tokens, 2);
  EXPECT_EQ(find({5, 7}, 2).num_tokens, 1);
  EXPECT_EQ(find({7}, 2).num_tokens, 0);
  EXPECT_EQ(find({5, 6, 7}, 1).num_tokens, 0);  // the step that writes it
  const Pages longer = small.run({1, 1, 1, 1, 5, 6, 7, 8});
  EXPECT_EQ(small.tree.num_pages(), 2);  // the shorter one is gone
  EXPECT_EQ(find({5, 6, 7}, 3).page, longer[1]);
  EXPECT_EQ(find({5, 6, 7}, 3).num_tokens, 3);
  small.run({1, 1, 1, 1, 5, 6});
  EXPECT_EQ(small.tree.num_pages(), 2);  // nothing new
}

// A plain map from prefixes to pages, and what every page holds.
class Reference {
 public:
  struct Key {
    std::int32_t space;
    Tokens tokens;
    auto operator<=>(const Key&) const = default;
  };
  struct Entry {
    PageId page;
    int owners = 1;               // sequences
    std::int64_t idle = 0;        // when the last of them left
    std::int64_t idle_since = 0;  // pages given up before that
    Tokens latest_child = {};     // the full page that followed it last
    bool parts = false;
  };
  struct User {
    std::int32_t space = 0;
    Tokens tokens = {};
    Pages pages = {};
    std::int64_t num_known = 0;
  };

  explicit Reference(unsigned seed) : random_(seed) {}

  void begin() {
    User user{.space = below(3)};
    user.tokens.resize(static_cast<std::size_t>(below(20)));
    // What is asked for changes: others than before are shared.
    const std::int32_t least = 2 * (num_begins_++ / 60);
    for (std::int32_t& token : user.tokens) token = least + below(2);
    tree_.take(space_of(user), user.tokens, user.pages);
    user.num_known = std::ssize(user.pages);
    std::int64_t expected = 0;
    while (entries_.contains(key(user, (expected + 1) * kPage)) && (expected + 1) * kPage <= std::ssize(user.tokens)) {
      Entry& entry = entries_.at(key(user, ++expected * kPage));
      ++entry.owners;
      ASSERT_EQ(user.pages.at(static_cast<std::size_t>(expected - 1)), entry.page);
      ASSERT_EQ(content_.at(entry.page), key(user, expected * kPage));
    }
    ASSERT_EQ(user.num_known, expected);
    expect_begun(user);
    num_found_ += expected;
    const std::int64_t missing = (std::ssize(user.tokens) + kPage - 1) / kPage - expected;
    const std::int64_t available = tree_.num_available();
    const Pages before = user.pages;
    const bool fits = tree_.allocate(missing, user.pages);
    ASSERT_EQ(fits, missing <= available);
    if (fits) {
      evict(missing);
      users_.push_back(std::move(user));
    } else {
      ASSERT_EQ(user.pages, before);
      leave(user);
    }
  }

  // A part of the tokens is computed, in pages that are the user's own, and the tree hears of the full ones.
  void compute() {
    if (users_.empty()) return;
    User& user = any_user();
    const std::int64_t num_full = std::ssize(user.tokens) / kPage;
    if (num_full == user.num_known) return;
    insert(user, (user.num_known + 1 + below(static_cast<std::int32_t>(num_full - user.num_known))) * kPage, false);
  }

  void end() {
    if (users_.empty()) return;
    std::swap(any_user(), users_.back());
    User user = std::move(users_.back());
    users_.pop_back();
    insert(
        user,
        user.num_known * kPage + below(static_cast<std::int32_t>(std::ssize(user.tokens) - user.num_known * kPage) + 1),
        true);
    leave(user);
  }

  void check() {
    std::vector<std::uint32_t> owners(kPages);
    for (const User& user : users_) {
      for (const PageId page : user.pages) ++owners[static_cast<std::size_t>(page)];
    }
    tree_.check(owners);
    pages_.check(owners);
    ASSERT_EQ(tree_.num_pages(), std::ssize(entries_));
    std::int64_t idle = 0;
    for (const auto& [key, entry] : entries_) {
      ASSERT_TRUE(tree_.contains(entry.page));
      ASSERT_EQ(content_.at(entry.page), key);
      idle += entry.owners == 0;
    }
    ASSERT_EQ(tree_.num_available(), pages_.num_free() + idle);
  }

  std::int64_t num_found() const { return num_found_; }
  std::uint64_t num_evicted() const { return tree_.num_evicted(); }
  std::int64_t num_replaced() const { return num_replaced_; }
  std::int64_t num_begun() const { return num_begun_; }
  std::int64_t num_parting() const { return num_parting_; }  // given up before others that nothing parts behind

 private:
  static constexpr std::int64_t kPage = 3, kPages = 24;

  std::int32_t below(std::int32_t n) { return static_cast<std::int32_t>(random_() % static_cast<unsigned>(n)); }
  User& any_user() { return users_[random_() % users_.size()]; }
  static PrefixSpace space_of(const User& user) { return {.adapter = user.space % 2, .salt = {0, user.space / 2u}}; }
  static Key key(const User& user, std::int64_t length) {
    const auto count = std::min<std::int64_t>(length, std::ssize(user.tokens));
    return {user.space, Tokens(user.tokens.begin(), user.tokens.begin() + count)};
  }
  static bool begins_with(const Tokens& tokens, const Tokens& with) {
    return tokens.size() >= with.size() && std::equal(with.begin(), with.end(), tokens.begin());
  }

  // What follows the user's pages is a page with as many of the next tokens as any (they are few here).
  void expect_begun(const User& user) {
    if (user.pages.empty()) return;
    const std::int64_t start = user.num_known * kPage;
    const auto rest = std::span(user.tokens).subspan(static_cast<std::size_t>(start));
    std::int64_t best = 0, children = 0;
    for (const auto& [other, entry] : entries_) {
      const std::int64_t length = std::ssize(other.tokens);
      if (other.space != user.space || length <= start || length > start + kPage) continue;
      if (!begins_with(other.tokens, key(user, start).tokens)) continue;
      const auto held = std::span(other.tokens).subspan(static_cast<std::size_t>(start));
      best = std::max<std::int64_t>(best, std::ranges::mismatch(held, rest).in1 - held.begin());
      ++children;
    }
    ASSERT_LE(children, 8);
    const PrefixTree::Begun begun = tree_.find_begun(user.pages.back(), rest, now_ + 1);
    ASSERT_EQ(begun.num_tokens, best);
    if (best == 0) return;
    ++num_begun_;
    ASSERT_TRUE(begins_with(content_.at(begun.page).tokens, key(user, start + best).tokens));
  }

  // A full page follows the one before it; all before that part if another one did.
  void note_child(const Key& child) {
    const auto parent_of = [&](std::int64_t length) {
      return entries_.find({child.space, Tokens(child.tokens.begin(), child.tokens.begin() + length)});
    };
    std::int64_t length = std::ssize(child.tokens) - kPage;
    const Tokens before = std::exchange(parent_of(length)->second.latest_child, child.tokens);
    if (before.empty() || before == child.tokens) return;
    for (; length > 0; length -= kPage) parent_of(length)->second.parts = true;
  }

  // The tree gave up as many pages as were missing: those that nobody has used the longest, where those behind which
  // prompts part count as used later.
  void evict(std::int64_t missing) {
    while (num_free_ < missing) {
      std::array<std::map<Key, Entry>::iterator, 2> oldest = {entries_.end(), entries_.end()};
      for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
        if (entry->second.owners > 0) continue;
        auto& first = oldest[entry->second.parts ? 1 : 0];
        if (first == entries_.end() || entry->second.idle < first->second.idle) first = entry;
      }
      const auto [own, parting] = oldest;
      ASSERT_TRUE(own != entries_.end() || parting != entries_.end());
      const bool is_own = own != entries_.end() && (parting == entries_.end() ||
                                                    own->second.idle_since <= parting->second.idle_since + 2 * kPages);
      num_parting_ += own != entries_.end() && !is_own;
      forget(is_own ? own : parting);
      ++num_given_up_;
    }
    num_free_ -= missing;
    ASSERT_EQ(pages_.num_free(), num_free_);
  }
  void forget(std::map<Key, Entry>::iterator entry) {
    content_.erase(entry->second.page);  // whoever finds it now finds nothing
    entries_.erase(entry);
    ++num_free_;
  }

  void insert(User& user, std::int64_t length, bool is_last) {
    const Pages before = user.pages;
    Pages replaced;
    const Tokens tokens = key(user, length).tokens;
    const std::int64_t num_pages = (length + kPage - 1) / kPage;
    for (std::int64_t i = user.num_known; i < num_pages; ++i) {
      const Key prefix = key(user, std::min(length, (i + 1) * kPage));
      const PageId page = before[static_cast<std::size_t>(i)];
      content_[page] = prefix;
      const bool is_full = std::ssize(prefix.tokens) % kPage == 0;
      if (!is_full && i == 0) break;  // nothing comes before it
      if (is_full) {
        const auto known = entries_.find(prefix);
        if (known == entries_.end()) {
          supersede(prefix, i);
          entries_[prefix] = {.page = page};
          if (i > 0) note_child(prefix);
        } else {
          ++known->second.owners;
          replaced.push_back(page);
        }
      } else if (std::ranges::none_of(entries_, [&](const auto& entry) {
                   return entry.first.space == prefix.space && begins_with(entry.first.tokens, prefix.tokens);
                 })) {
        supersede(prefix, i);
        entries_[prefix] = {.page = page};
      }
    }
    Pages got;
    const std::int64_t num_known = tree_.insert(
        {.space = space_of(user), .tokens = tokens, .num_known = user.num_known, .keep_begun = is_last, .now = ++now_},
        user.pages, got);
    ASSERT_EQ(got, replaced);
    ASSERT_GE(num_known, length / kPage);
    user.num_known = num_known;
    num_replaced_ += std::ssize(got);
    num_free_ += std::ssize(got);
    tree_.release(got);
    for (const PageId page : got) content_.erase(page);
  }

  // Leaves that hold less than what comes now, and that nobody has.
  void supersede(const Key& prefix, std::int64_t page) {
    for (auto entry = entries_.begin(); entry != entries_.end();) {
      const auto here = entry++;
      if (here->first.space == prefix.space && here->second.owners == 0 &&
          std::ssize(here->first.tokens) > page * kPage && here->first.tokens.size() < prefix.tokens.size() &&
          begins_with(prefix.tokens, here->first.tokens)) {
        forget(here);
      }
    }
  }

  void leave(User& user) {
    for (std::size_t i = user.pages.size(); i-- > 0;) {
      const auto owned =
          std::ranges::find(entries_, user.pages[i], [](const auto& entry) { return entry.second.page; });
      if (owned == entries_.end()) {
        ++num_free_;
        content_.erase(user.pages[i]);
      } else if (--owned->second.owners == 0) {
        owned->second.idle = ++clock_;
        owned->second.idle_since = num_given_up_;
      }
    }
    tree_.release(user.pages);
  }

  std::mt19937 random_;
  PageAllocator pages_{kPages};
  PrefixTree tree_{pages_, kPage};
  std::map<Key, Entry> entries_;
  std::map<PageId, Key> content_;
  std::vector<User> users_;
  std::int64_t num_free_ = kPages, clock_ = 0, num_found_ = 0, num_replaced_ = 0, num_begun_ = 0;
  std::int64_t num_given_up_ = 0, num_parting_ = 0;
  std::int32_t num_begins_ = 0;
  std::uint64_t now_ = 0;
};

class PrefixTreeProperties : public testing::TestWithParam<unsigned> {};

TEST_P(PrefixTreeProperties, IsAMapFromPrefixesToPages) {
  Reference reference(GetParam());
  std::mt19937 random(GetParam() + 1000);
  for (int round = 0; round < 4000; ++round) {
    const bool is_calm = round / 500 % 2 == 1;  // few sequences at once, so that most pages are the tree's alone
    switch (random() % 4) {
      case 0: reference.begin(); break;
      case 1: is_calm ? reference.end() : reference.begin(); break;
      case 2: reference.compute(); break;
      default: reference.end(); break;
    }
    if (HasFatalFailure()) return;
    ASSERT_NO_FATAL_FAILURE(reference.check()) << "round " << round;
  }
  EXPECT_GT(reference.num_found(), 100);
  EXPECT_GT(reference.num_evicted(), 100u);
  EXPECT_GT(reference.num_replaced(), 10);
  EXPECT_GT(reference.num_begun(), 20);
  EXPECT_GT(reference.num_parting(), 0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, PrefixTreeProperties, testing::Range(0u, 12u));

}  // namespace
}  // namespace minisgl
