// The one accountant of cache pages: every page is free or has owners, and this class alone counts them. It knows page
// numbers, not memory, and not who the owners are: sequences, the prefix tree, steps in flight. Free + in use = total
// is one sum in one place.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace minisgl {

using PageId = std::int32_t;

class PageAllocator {
 public:
  explicit PageAllocator(std::int64_t num_pages);  // 1 <= num_pages <= 2^31 - 1, else CheckError

  // Appends `count` pages with one owner each to `pages` and returns true, or does nothing and returns false when fewer
  // are free. The page freed last is given out first: its memory is the likeliest to be resident.
  [[nodiscard]] bool allocate(std::int64_t count, std::vector<PageId>& pages);
  // Gives each page one more owner. CheckError for a page that has none.
  void retain(std::span<const PageId> pages);
  // Takes one owner from each page; a page without owners is free. CheckError for a page that has none (released too
  // often, or never given out).
  void release(std::span<const PageId> pages);

  std::int64_t num_total() const { return static_cast<std::int64_t>(num_owners_.size()); }
  std::int64_t num_free() const { return static_cast<std::int64_t>(free_.size()); }
  std::int64_t num_in_use() const { return num_in_use_; }
  std::uint32_t num_owners(PageId page) const { return num_owners_.at(static_cast<std::size_t>(page)); }

  // Counts everything anew, O(pages): CheckError unless each page is once among the free ones or has owners.
  void check() const;
  // The same, and CheckError unless each page has exactly as many owners as the caller knows: `owners` [num_total].
  void check(std::span<const std::uint32_t> owners) const;

 private:
  bool is_in_use(PageId page) const { return page >= 0 && page < num_total() && num_owners_[page] > 0; }

  std::vector<PageId> free_;               // a stack; the top is given out next
  std::vector<std::uint32_t> num_owners_;  // [num_pages] 0: free
  std::int64_t num_in_use_ = 0;
};

}  // namespace minisgl
