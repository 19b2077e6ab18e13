// The second tier of the prefix cache: pages in the host's memory, numbered and counted as the device's are. What the
// device will give up next is copied out ahead, so giving it up costs nothing, and comes back when it is asked for.
// Says which pages are to be copied, and hears when they were; knows no memory.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cache/page_allocator.h"
#include "cache/prefix_tree.h"
#include "cache/tier_copies.h"

namespace minisgl {

// The host's pages are in a prefix tree of their own, with whole paths, so some are on the device, too. The one that
// was copied or asked for longest ago is given up first.
//
// A page that a copy reads or writes belongs to the copy until that is done. A device's page that is being copied out
// may leave the device's tree meanwhile (PrefixTree::begin_copy); the host's tree has it from the order of the copy on,
// since copies are made one after the other. What comes back is in the device's tree once it is there.
class HostTier {
 public:
  static constexpr std::int64_t kMostPages = 256;  // of one TierCopies: a GPU has so many on their way without a wait
  static constexpr std::size_t kMostUnderWay = 2;

  // `device` and the allocator of its pages outlive the tier. None of the `num_pages` can be used yet (set_ready()).
  HostTier(PrefixTree& device, const PageAllocator& device_pages, std::int64_t num_pages, int page_size);

  // As PrefixTree's: what the host has, and will have once the copies that are ordered are done.
  void report_to(BlockEvents& events, std::string medium) { tree_.report_to(events, std::move(medium)); }

  // The first `count` pages have memory. CheckError for fewer than before.
  void set_ready(std::int64_t count);

  // Of `tokens`, which begin at the root, the most that is a whole number of pages here; whether the page behind the
  // first `num_known` is on its way to the device.
  struct Found {
    std::int64_t num_pages = 0;
    bool is_coming = false;
  };
  Found find(const PrefixSpace& space, std::span<const std::int32_t> tokens, std::int64_t num_known);
  // Brings what the latest find() found, nothing of which is coming, to the device, which has room for it. `known`:
  // the pages of `tokens` that the device's tree has, the caller's until now.
  void bring(const PrefixSpace& space, std::span<const std::int32_t> tokens, std::span<const PageId> known);

  // The next copies to be made, or null: what is to come back, then what the device would give up, until `num_wanted`
  // of its pages are free or have a copy. Valid until finish() hears of it.
  const TierCopies* next_copies(std::int64_t num_wanted);
  // All copies up to this number are done. `now`: as PrefixTree::insert()'s.
  void finish(std::uint64_t number, std::uint64_t now);

  bool is_busy() const { return !under_way_.empty() || !bringing_.empty(); }
  std::int64_t num_moving() const { return num_moving_; }  // pages that copies are under way or ordered for
  std::uint64_t num_done() const { return num_done_; }     // the number of the last copies that are done
  std::int64_t num_ready() const { return num_ready_; }
  std::int64_t num_total() const { return pages_.num_total(); }
  const PrefixTree& tree() const { return tree_; }
  // Pages copied since the tier was made.
  std::uint64_t num_copied_out() const { return num_copied_out_; }
  std::uint64_t num_copied_in() const { return num_copied_in_; }

  // Verifies everything, O(pages); adds the copies' own to `device_owners`.
  void check(std::span<std::uint32_t> device_owners) const;

 private:
  struct UnderWay {
    TierCopies copies;
    std::vector<PageId> held;  // paths to the host's pages that are written, in order; of those from the device
  };
  // A prefix that comes back.
  struct Bringing {
    PrefixSpace space;
    std::vector<std::int32_t> tokens;
    std::vector<PageId> host, device;  // its pages in both tiers, from the root on
    std::int64_t num_known = 0;        // the device had so many of them
    std::int64_t num_ordered = 0, num_done = 0;
  };

  bool is_saved(PageId device_page) const;
  void link(PageId device_page, PageId host_page);
  void order_bringing(TierCopies& copies);
  void order_saving(UnderWay& order, std::int64_t num_wanted);
  bool save(PageId page, UnderWay& order);
  void settle(Bringing& bringing, std::uint64_t now);

  PrefixTree& device_;
  const PageAllocator& device_pages_;
  PageAllocator pages_;
  PrefixTree tree_;
  std::vector<PageId> device_of_;          // [num_total] the device's page that was last the same
  std::vector<std::uint8_t> is_coming_;    // [num_total] on its way to the device
  std::deque<UnderWay> under_way_;         // in the order of their numbers
  std::deque<Bringing> bringing_;          // in the order of their copies
  PageId unfinished_ = PrefixTree::kRoot;  // one that was offered, and whose path the last copies had no room for
  std::vector<PageId> path_;               // find()'s
  std::vector<PageId> chain_;              // save()'s
  std::int64_t num_ready_ = 0, num_moving_ = 0;
  std::uint64_t num_ordered_ = 0, num_done_ = 0;
  std::uint64_t num_copied_out_ = 0, num_copied_in_ = 0;
};

}  // namespace minisgl
