// A stack of free pages and one flag a page.
#include "cache/page_allocator.h"

#include <limits>

#include "core/error.h"

namespace minisgl {

PageAllocator::PageAllocator(std::int64_t num_pages) {
  MINISGL_CHECK(num_pages >= 1 && num_pages <= std::numeric_limits<PageId>::max(), "num_pages is ", num_pages);
  in_use_.assign(num_pages, 0);
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
    in_use_[page] = 1;
    pages.push_back(page);
  }
  num_in_use_ += count;
  return true;
}

void PageAllocator::release(std::span<const PageId> pages) {
  for (const PageId page : pages) {
    MINISGL_CHECK(page >= 0 && page < num_total() && in_use_[page], "page ", page, " is not in use");
    in_use_[page] = 0;
    free_.push_back(page);
    --num_in_use_;
  }
}

void PageAllocator::check() const {
  MINISGL_CHECK(num_free() + num_in_use_ == num_total(), num_free(), " free + ", num_in_use_, " in use of ",
                num_total());
  std::vector<std::uint8_t> seen = in_use_;
  for (const PageId page : free_) {
    MINISGL_CHECK(page >= 0 && page < num_total() && !seen[page], "page ", page, " is in use or twice free");
    seen[page] = 1;
  }
}

}  // namespace minisgl
