// The page accountant: what it gives out, what it refuses, and that the sum always holds.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "cache/page_allocator.h"
#include "core/error.h"

namespace minisgl {
namespace {

TEST(PageAllocator, GivesEachPageOnce) {
  PageAllocator pages(5);
  std::vector<PageId> mine;
  ASSERT_TRUE(pages.allocate(2, mine));
  ASSERT_TRUE(pages.allocate(3, mine));
  EXPECT_EQ(std::set<PageId>(mine.begin(), mine.end()), (std::set<PageId>{0, 1, 2, 3, 4}));
  EXPECT_EQ(pages.num_free(), 0);
  EXPECT_EQ(pages.num_in_use(), 5);
  pages.check();
}

TEST(PageAllocator, AllOrNothing) {
  PageAllocator pages(3);
  std::vector<PageId> mine;
  EXPECT_FALSE(pages.allocate(4, mine));
  EXPECT_TRUE(mine.empty());
  EXPECT_EQ(pages.num_free(), 3);
  EXPECT_TRUE(pages.allocate(0, mine));
  EXPECT_TRUE(mine.empty());
}

TEST(PageAllocator, StartsWithTheLowestAndReusesTheLatest) {
  PageAllocator pages(100);
  std::vector<PageId> mine;
  ASSERT_TRUE(pages.allocate(3, mine));
  EXPECT_EQ(mine, (std::vector<PageId>{0, 1, 2}));
  pages.release(std::vector<PageId>{1});
  mine.clear();
  ASSERT_TRUE(pages.allocate(2, mine));
  EXPECT_EQ(mine, (std::vector<PageId>{1, 3}));
}

TEST(PageAllocator, RefusesAReleaseTooMany) {
  PageAllocator pages(4);
  std::vector<PageId> mine;
  ASSERT_TRUE(pages.allocate(1, mine));
  pages.release(mine);
  EXPECT_THROW(pages.release(mine), CheckError);
  EXPECT_THROW(pages.release(std::vector<PageId>{3}), CheckError);   // never given out
  EXPECT_THROW(pages.release(std::vector<PageId>{4}), CheckError);   // no such page
  EXPECT_THROW(pages.release(std::vector<PageId>{-1}), CheckError);  // no such page
  EXPECT_THROW(PageAllocator(0), CheckError);
  pages.check();
}

TEST(PageAllocator, APageIsFreeWhenItsLastOwnerIsGone) {
  PageAllocator pages(3);
  std::vector<PageId> mine;
  ASSERT_TRUE(pages.allocate(2, mine));
  const std::vector<PageId> shared{mine[0]};
  pages.retain(shared);
  EXPECT_EQ(pages.num_owners(mine[0]), 2u);
  pages.check(std::vector<std::uint32_t>{2, 1, 0});
  pages.release(mine);
  EXPECT_EQ(pages.num_free(), 2);
  EXPECT_EQ(pages.num_in_use(), 1);
  std::vector<PageId> others;
  ASSERT_TRUE(pages.allocate(2, others));
  EXPECT_EQ(std::ranges::count(others, mine[0]), 0);
  pages.release(shared);
  EXPECT_EQ(pages.num_free(), 1);
  EXPECT_THROW(pages.release(shared), CheckError);
  EXPECT_THROW(pages.retain(shared), CheckError);
  EXPECT_THROW(pages.retain(std::vector<PageId>{3}), CheckError);  // no such page
  pages.check();
}

TEST(PageAllocator, ChecksCountsAgainstItsOwners) {
  PageAllocator pages(3);
  std::vector<PageId> mine;
  ASSERT_TRUE(pages.allocate(2, mine));
  pages.check(std::vector<std::uint32_t>{1, 1, 0});
  EXPECT_THROW(pages.check(std::vector<std::uint32_t>{1, 2, 0}), CheckError);  // one that was never counted
  EXPECT_THROW(pages.check(std::vector<std::uint32_t>{1, 0, 0}), CheckError);  // one that has left
  EXPECT_THROW(pages.check(std::vector<std::uint32_t>{1, 1, 1}), CheckError);  // one of a free page
  EXPECT_THROW(pages.check(std::vector<std::uint32_t>{1, 1}), CheckError);
}

// Owners come with new pages or with some of another owner's, and leave in any order.
TEST(PageAllocator, CountsHoldUnderRandomSharing) {
  std::mt19937 random(1);
  PageAllocator pages(37);
  std::vector<std::vector<PageId>> owners;
  std::uint32_t most_owners = 0;
  for (int step = 0; step < 5000; ++step) {
    const unsigned action = random() % 4;
    if (action == 0) {
      std::vector<PageId> mine;
      const std::int64_t count = random() % 8;
      const bool fits = count <= pages.num_free();
      ASSERT_EQ(pages.allocate(count, mine), fits);
      ASSERT_EQ(static_cast<std::int64_t>(mine.size()), fits ? count : 0);
      if (!mine.empty()) owners.push_back(mine);
    } else if (action == 1 && !owners.empty()) {
      std::vector<PageId> mine = owners[random() % owners.size()];
      mine.resize(1 + random() % mine.size());
      pages.retain(mine);
      const bool fits = pages.allocate(2, mine);
      if (fits) {
        ASSERT_EQ(pages.num_owners(mine.back()), 1u);
      }
      owners.push_back(mine);
    } else if (!owners.empty()) {
      std::swap(owners[random() % owners.size()], owners.back());
      pages.release(owners.back());
      owners.pop_back();
    }
    std::vector<std::uint32_t> counts(37, 0);
    for (const auto& owner : owners) {
      for (const PageId page : owner) most_owners = std::max(most_owners, ++counts[page]);
    }
    pages.check(counts);
    ASSERT_EQ(pages.num_in_use(), 37 - std::ranges::count(counts, 0u));
  }
  EXPECT_GT(most_owners, 3u);
}

}  // namespace
}  // namespace minisgl
