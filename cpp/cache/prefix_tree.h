// Pages of computed prefixes, found again by their tokens. Its accounts lie with the PageAllocator, one owner per page
// for the tree itself. No device code: it knows page numbers and token ids.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "cache/block_events.h"
#include "cache/page_allocator.h"
#include "cache/probing_index.h"

namespace minisgl {

// Sequences share pages only within a space: keys and values depend on the adapter, and a salt keeps users apart.
struct PrefixSpace {
  std::int32_t adapter = 0;
  std::array<std::uint64_t, 2> salt = {};  // zeros: none

  bool operator==(const PrefixSpace&) const = default;
};

// A radix tree whose symbols are pages: a node is one page, with the tokens that it holds; the path from the root to it
// is the prefix that its keys and values depend on. A full page is found through a hash of its parent and its tokens,
// and compared token by token. A page with fewer tokens is a leaf.
//
// Who has a node's page also has those of its path: take() gives whole paths, and insert() puts the tree's pages in the
// place of equal ones. So a page that the tree alone owns has no descendant that anybody else owns, and all of them can
// be given up, leaves first.
//
// The one released longest ago is given up first. A page behind which prompts part counts as released later, by twice
// the time in which as many pages are given up as there are: it is the beginning that strangers share, and every use of
// it is one of many who may come again, while what lies behind the last parting is one conversation's, which may be
// over. That is segmented LRU (Karedla, Love and Wherry, "Caching Strategies to Improve Disk System Performance", IEEE
// Computer 1994), with parting in place of a second use, as the turns of one conversation use its pages again and
// again, and a bonus in time in place of a size for the segments, so that what nobody asks for any more goes.
//
// All memory is taken when the tree is made, about 100 bytes and the tokens per page of the cache. No operation
// allocates, but for the list that the caller gives; none is longer than the pages that it is about.
//
// Insertion (add()) and eviction (drop()) are one function each: what is to know which pages there are belongs there,
// as the events of report_to() do.
//
// A copy to another tier (host_tier.h's business) reads pages that may be given up meanwhile. Such a page leaves the
// tree as any other, and is free when the copy is done.
class PrefixTree {
 public:
  static constexpr PageId kRoot = -1;  // where prefixes begin

  // `pages` outlives the tree.
  PrefixTree(PageAllocator& pages, int page_size);
  // From now on `events`, which outlives the tree, hears of full pages that enter and leave it; an empty tree's.
  void report_to(BlockEvents& events, std::string medium);

  // Finds the most of `tokens` that is a whole number of pages and follows `parent`, a page of the caller's in the
  // tree, or kRoot. Appends those pages to `pages` and makes the caller an owner of each.
  void take(const PrefixSpace& space, std::span<const std::int32_t> tokens, std::vector<PageId>& pages,
            PageId parent = kRoot);

  // Of the pages that follow `parent` (a page of the tree), the one that begins with the most tokens of `rest`. Looks
  // at the latest few; only at pages inserted before `now`.
  struct Begun {
    PageId page = -1;
    std::int64_t num_tokens = 0;  // 0: none
  };
  Begun find_begun(PageId parent, std::span<const std::int32_t> rest, std::uint64_t now) const;

  // `tokens` follow `parent`, as in take(). The first pages.size() pages of them are the caller's; the first
  // `num_known` of these are the tree's, too. Inserts the others: as full pages, as far as there are tokens for them,
  // and where `keep_begun` the last one with the rest. Where the tree has an equal page, that one takes the place in
  // `pages`, with the caller as an owner, and the caller's goes to `replaced`, still the caller's. `now` never
  // decreases. Returns how many of the pages are the tree's now.
  struct Insertion {
    PrefixSpace space;
    std::span<const std::int32_t> tokens;
    PageId parent = kRoot;
    std::int64_t num_known = 0;
    bool keep_begun = false;
    std::uint64_t now = 0;
  };
  std::int64_t insert(const Insertion& insertion, std::span<PageId> pages, std::vector<PageId>& replaced);

  // One more owner, and one fewer, as PageAllocator's. release() takes a sequence's pages in their order: what comes
  // first is given up last.
  void retain(std::span<const PageId> pages);
  void release(std::span<const PageId> pages);
  // As PageAllocator's, and gives up pages that the tree alone owns where too few are free.
  [[nodiscard]] bool allocate(std::int64_t count, std::vector<PageId>& pages);

  // A copy of a page of the tree to another tier begins: it owns the page until end_copy(), but the page may be given
  // up when it would be without. One copy at a time reads a page.
  void begin_copy(PageId page);
  void end_copy(PageId page);
  bool is_copied(PageId page) const { return node(page).is_copied; }  // now
  // The page of the other tier that has the same keys and values, as the last set_twin() of this node says; -1: none.
  PageId twin(PageId page) const { return node(page).twin; }
  void set_twin(PageId page, PageId twin) { node(page).twin = twin; }
  // Of the pages that the tree alone owns and that were not offered since, the one that will be given up first; it
  // counts as offered until somebody else owns it. -1: there is none.
  PageId offer();
  bool is_offered(PageId page) const { return node(page).is_offered; }
  std::int64_t num_offered() const { return num_offered_; }

  // Appends the path from the root to a page of the tree, and makes the caller an owner of each page.
  void take_path(PageId page, std::vector<PageId>& pages);
  PageId parent(PageId page) const { return node(page).parent; }  // of a page of the tree; kRoot
  bool is_full(PageId page) const { return node(page).num_tokens == static_cast<std::int32_t>(page_size_); }
  const PrefixSpace& space_of(PageId first) const { return node(first).space; }  // of a page that follows the root
  // What a page of the tree holds.
  std::span<const std::int32_t> tokens_of(PageId page) const {
    return std::span(tokens_).subspan(static_cast<std::size_t>(page) * page_size_,
                                      static_cast<std::size_t>(node(page).num_tokens));
  }

  std::int64_t num_available() const { return pages_.num_free() + num_idle_ - num_idle_copied_; }
  std::int64_t num_pages() const { return num_pages_; }  // in the tree
  std::uint64_t num_evicted() const { return num_evicted_; }
  // Whether the page is in the tree.
  bool contains(PageId page) const { return node(page).parent != kAbsent; }
  // Whether a page of the tree was inserted before `now`.
  bool is_older(PageId page, std::uint64_t now) const { return node(page).inserted < now; }

  // Verifies everything, O(pages); adds the tree's own to `owners` [num_total].
  void check(std::span<std::uint32_t> owners) const;

 private:
  static constexpr PageId kNone = -1;  // no page; as a parent: the root
  static constexpr PageId kAbsent = -2;
  static constexpr int kMostCompared = 8;  // children that find_begun() looks at
  static constexpr std::uint64_t kPartingBonus = 2;

  struct Node {
    PageId parent = kAbsent;
    std::int32_t num_tokens = 0;  // page_size, or fewer: a leaf that the index doesn't know
    std::uint64_t hash = 0;
    std::uint64_t inserted = 0;  // `now` of that
    PageId first_child = kNone, next_sibling = kNone, previous_sibling = kNone;
    PageId newer = kNone, older = kNone;  // while is_idle: its neighbours in its list
    bool is_idle = false;                 // the tree alone owns it, but for a copy
    bool is_offered = false;              // while is_idle
    bool is_copied = false;               // a copy to another tier reads it
    bool parts = false;                   // two full pages have followed it, or a page behind it
    PageId twin = kNone;                  // see twin()
    std::uint64_t latest_child = 0;       // the hash of the full page that followed it last
    std::uint64_t idle_since = 0;         // while is_idle: pages that had been given up
    PrefixSpace space = {};               // of a child of the root
  };

  Node& node(PageId page) { return nodes_[static_cast<std::size_t>(page)]; }
  const Node& node(PageId page) const { return nodes_[static_cast<std::size_t>(page)]; }
  std::uint64_t hash_of(PageId parent, const PrefixSpace& space, std::span<const std::int32_t> tokens) const;
  PageId find(PageId parent, const PrefixSpace& space, std::span<const std::int32_t> tokens, std::uint64_t hash) const;
  void add(PageId page, PageId parent, std::uint64_t hash, std::span<const std::int32_t> tokens, const Insertion& with);
  void drop(PageId page);
  void drop_begun(PageId parent, std::span<const std::int32_t> tokens);
  // Whether nobody owns the page but the tree and a copy.
  bool is_alone(PageId page) const { return pages_.num_owners(page) == (node(page).is_copied ? 2u : 1u); }
  void note_child(PageId parent, std::uint64_t hash);
  void report_added(PageId page, const PrefixSpace& space);
  PageId sooner_given_up(PageId own, PageId parting) const;
  void make_idle(PageId page);
  void end_idle(PageId page);

  PageAllocator& pages_;
  std::size_t page_size_;
  std::uint64_t seed_;                // of the hashes, so that nobody can make them collide
  std::vector<Node> nodes_;           // [num_total]
  std::vector<std::int32_t> tokens_;  // [num_total, page_size]
  ProbingIndex<PageId> index_;        // full pages
  // The pages that the tree alone owns, in the order of their release.
  struct IdleList {
    PageId newest = kNone, oldest = kNone;
    PageId next_offered = kNone;  // the oldest that wasn't offered
  };
  IdleList& idle_list(const Node& node) { return idle_[node.parts ? 1 : 0]; }
  std::array<IdleList, 2> idle_;  // those behind which nothing parts, the others
  std::int64_t num_idle_ = 0, num_idle_copied_ = 0, num_offered_ = 0, num_pages_ = 0;
  std::uint64_t num_evicted_ = 0;
  BlockEvents* events_ = nullptr;  // null: nobody listens
  std::string medium_;
  std::vector<std::uint64_t> block_hashes_;  // [num_total] where somebody listens
};

}  // namespace minisgl
