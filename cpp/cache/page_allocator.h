// The one accountant of cache pages: every page is free or in use, and this class alone moves it between the two.
// It knows page numbers, not memory. Shared prefixes (a radix tree beside this file) would add a third state here, so
// that free + cached + in use = total stays one sum in one place.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace minisgl {

using PageId = std::int32_t;

class PageAllocator {
 public:
  explicit PageAllocator(std::int64_t num_pages);  // 1 <= num_pages <= 2^31 - 1, else CheckError

  // Appends `count` pages to `pages` and returns true, or does nothing and returns false when fewer are free.
  // The page released last is given out first: its memory is the likeliest to be resident.
  [[nodiscard]] bool allocate(std::int64_t count, std::vector<PageId>& pages);

  // Gives pages back. CheckError for a page that is not in use (released twice, or never given out).
  void release(std::span<const PageId> pages);

  std::int64_t num_total() const { return static_cast<std::int64_t>(in_use_.size()); }
  std::int64_t num_free() const { return static_cast<std::int64_t>(free_.size()); }
  std::int64_t num_in_use() const { return num_in_use_; }

  // Counts everything anew, O(pages): CheckError unless each page is exactly once free or in use.
  void check() const;

 private:
  std::vector<PageId> free_;          // a stack; the top is given out next
  std::vector<std::uint8_t> in_use_;  // [num_pages] 0 or 1
  std::int64_t num_in_use_ = 0;
};

}  // namespace minisgl
