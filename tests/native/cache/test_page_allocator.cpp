// The page accountant: what it gives out, what it refuses, and that the sum always holds.
#include <gtest/gtest.h>

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

TEST(PageAllocator, RefusesASecondRelease) {
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

TEST(PageAllocator, TheSumHoldsUnderRandomUse) {
  std::mt19937 random(1);
  PageAllocator pages(37);
  std::vector<std::vector<PageId>> owners;
  for (int step = 0; step < 5000; ++step) {
    if (random() % 2 == 0) {
      std::vector<PageId> mine;
      const std::int64_t count = random() % 8;
      const bool fits = count <= pages.num_free();
      ASSERT_EQ(pages.allocate(count, mine), fits);
      ASSERT_EQ(static_cast<std::int64_t>(mine.size()), fits ? count : 0);
      if (!mine.empty()) owners.push_back(mine);
    } else if (!owners.empty()) {
      std::swap(owners[random() % owners.size()], owners.back());
      pages.release(owners.back());
      owners.pop_back();
    }
    pages.check();
    std::set<PageId> held;
    std::size_t count = 0;
    for (const auto& owner : owners) held.insert(owner.begin(), owner.end()), count += owner.size();
    ASSERT_EQ(held.size(), count);  // no page has two owners
    ASSERT_EQ(pages.num_in_use(), static_cast<std::int64_t>(count));
  }
}

}  // namespace
}  // namespace minisgl
