// A stack of free pages and one count per page.
#include "cache/page_allocator.h"

#include <limits>

#include "core/error.h"

namespace minisgl {

PageAllocator::PageAllocator(std::int64_t num_pages) {
  MINISGL_CHECK(num_pages >= 1 && num_pages <= std::numeric_limits<PageId>::max(), "num_pages is ", num_pages);
  num_owners_.assign(num_pages, 0);
  free_.reserve(num_pages);
  for (std::int64_t page = num_pages - 1; page >= 0; --page) free_.push_back(static_cast<PageId>(page));
}

bool PageAllocator::allocate(std::int64_t count, std::vector<PageId>& pages) {
  MINISGL_CHECK(count >= 0, "count is ", count);
  if (count > num_free()) return false;
  pages.reserve(pages.size() + count);
  for (std::int64_t i = 0; i < count; ++i) {
    const PageId page = free_.back();
    free_.pop_back();
    num_owners_[page] = 1;
    pages.push_back(page);
  }
  num_in_use_ += count;
  return true;
}

void PageAllocator::retain(std::span<const PageId> pages) {
  for (const PageId page : pages) {
    MINISGL_CHECK(is_in_use(page), "page ", page, " is not in use");
    ++num_owners_[page];
  }
}

void PageAllocator::release(std::span<const PageId> pages) {
  for (const PageId page : pages) {
    MINISGL_CHECK(is_in_use(page), "page ", page, " is not in use");
    if (--num_owners_[page] > 0) continue;
    free_.push_back(page);
    --num_in_use_;
  }
}

void PageAllocator::check() const {
  MINISGL_CHECK(num_free() + num_in_use_ == num_total(), num_free(), " free + ", num_in_use_, " in use of ",
                num_total());
  std::vector<std::uint8_t> is_free(num_owners_.size(), 0);
  for (const PageId page : free_) {
    MINISGL_CHECK(page >= 0 && page < num_total() && num_owners_[page] == 0 && !is_free[page], "page ", page,
                  " is in use or twice free");
    is_free[page] = 1;
  }
}

void PageAllocator::check(std::span<const std::uint32_t> owners) const {
  check();
  MINISGL_CHECK(owners.size() == num_owners_.size(), owners.size(), " counts for ", num_total(), " pages");
  for (std::size_t page = 0; page < owners.size(); ++page) {
    MINISGL_CHECK(owners[page] == num_owners_[page], "page ", page, " has ", owners[page], " owners, not ",
                  num_owners_[page]);
  }
}

}  // namespace minisgl
