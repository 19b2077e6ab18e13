// A node per page, an index by hash, and two lists of the pages that nobody but the tree owns.
#include "cache/prefix_tree.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "core/error.h"
#include "core/xxh64.h"

namespace minisgl {
PrefixTree::PrefixTree(PageAllocator& pages, int page_size)
    : pages_(pages),
      page_size_(static_cast<std::size_t>(page_size)),
      seed_(random_seed()),
      index_(static_cast<std::size_t>(pages.num_total())) {
  MINISGL_CHECK(page_size >= 1, "page_size is ", page_size);
  const auto count = static_cast<std::size_t>(pages.num_total());
  nodes_.resize(count);
  tokens_.resize(count * page_size_);
}

void PrefixTree::take(const PrefixSpace& space, std::span<const std::int32_t> tokens, std::vector<PageId>& pages,
                      PageId parent) {
  const std::size_t first = pages.size();
  for (; tokens.size() >= page_size_; tokens = tokens.subspan(page_size_)) {
    const auto here = tokens.first(page_size_);
    const PageId page = find(parent, space, here, hash_of(parent, space, here));
    if (page == kNone) break;
    pages.push_back(page);
    parent = page;
  }
  retain(std::span(pages).subspan(first));
}

PrefixTree::Begun PrefixTree::find_begun(PageId parent, std::span<const std::int32_t> rest, std::uint64_t now) const {
  MINISGL_CHECK(contains(parent), "page ", parent, " is not in the tree");
  Begun best;
  int compared = 0;
  for (PageId page = node(parent).first_child; page != kNone && compared < kMostCompared;
       page = node(page).next_sibling, ++compared) {
    if (node(page).inserted >= now) continue;
    const auto tokens = tokens_of(page);
    const auto count = std::ranges::mismatch(tokens, rest).in1 - tokens.begin();
    if (count > best.num_tokens) best = {.page = page, .num_tokens = count};
  }
  return best;
}

std::int64_t PrefixTree::insert(const Insertion& insertion, std::span<PageId> pages, std::vector<PageId>& replaced) {
  auto count = static_cast<std::size_t>(insertion.num_known);
  PageId parent = count == 0 ? insertion.parent : pages[count - 1];
  std::span<const std::int32_t> rest = insertion.tokens.subspan(count * page_size_);
  for (; rest.size() >= page_size_; rest = rest.subspan(page_size_), ++count) {
    const auto here = rest.first(page_size_);
    const std::uint64_t hash = hash_of(parent, insertion.space, here);
    const PageId known = find(parent, insertion.space, here, hash);
    if (known == kNone) {
      if (parent != kNone) drop_begun(parent, here);
      add(pages[count], parent, hash, here, insertion);
    } else {
      retain(std::span(&known, 1));
      replaced.push_back(std::exchange(pages[count], known));
    }
    parent = pages[count];
  }
  if (insertion.keep_begun && !rest.empty() && parent != kNone) {
    const Begun begun = find_begun(parent, rest, std::numeric_limits<std::uint64_t>::max());
    if (begun.num_tokens < std::ssize(rest)) {
      drop_begun(parent, rest);
      add(pages[count++], parent, 0, rest, insertion);
    }
  }
  return static_cast<std::int64_t>(count);
}

void PrefixTree::retain(std::span<const PageId> pages) {
  pages_.retain(pages);
  for (const PageId page : pages) {
    if (node(page).is_idle) end_idle(page);
  }
}

void PrefixTree::release(std::span<const PageId> pages) {
  for (std::size_t i = pages.size(); i-- > 0;) {
    pages_.release(pages.subspan(i, 1));
    if (contains(pages[i]) && is_alone(pages[i])) make_idle(pages[i]);
  }
}

bool PrefixTree::allocate(std::int64_t count, std::vector<PageId>& pages) {
  if (count > num_available()) return false;
  while (pages_.num_free() < count) {
    drop(sooner_given_up(idle_[0].oldest, idle_[1].oldest));
    ++num_evicted_;
  }
  return pages_.allocate(count, pages);
}

void PrefixTree::begin_copy(PageId page) {
  Node& copied = node(page);
  MINISGL_CHECK(contains(page) && !copied.is_copied, "page ", page, " is copied already, or not in the tree");
  pages_.retain(std::span(&page, 1));
  copied.is_copied = true;
  num_idle_copied_ += copied.is_idle;
}

// A page that was given up since is in no tree, and nobody else's.
void PrefixTree::end_copy(PageId page) {
  Node& copied = node(page);
  num_idle_copied_ -= copied.is_idle;
  copied.is_copied = false;
  pages_.release(std::span(&page, 1));
}

PageId PrefixTree::offer() {
  const PageId page = sooner_given_up(idle_[0].next_offered, idle_[1].next_offered);
  if (page == kNone) return page;
  node(page).is_offered = true;
  ++num_offered_;
  idle_list(node(page)).next_offered = node(page).newer;
  return page;
}

void PrefixTree::take_path(PageId page, std::vector<PageId>& pages) {
  const auto first = std::ssize(pages);
  for (; page != kRoot; page = node(page).parent) pages.push_back(page);
  std::reverse(pages.begin() + first, pages.end());
  retain(std::span(pages).subspan(static_cast<std::size_t>(first)));
}

// Gives up a leaf that the tree alone owns.
void PrefixTree::drop(PageId page) {
  Node& leaf = node(page);
  MINISGL_CHECK(leaf.is_idle && leaf.first_child == kNone, "page ", page, " is in use");
  end_idle(page);
  if (leaf.num_tokens == static_cast<std::int32_t>(page_size_)) {
    index_.take_out(page, leaf.hash, [this](PageId other) { return node(other).hash; });
    if (events_) events_->removed(medium_, block_hashes_[static_cast<std::size_t>(page)]);
  }
  if (leaf.next_sibling != kNone) node(leaf.next_sibling).previous_sibling = leaf.previous_sibling;
  if (leaf.previous_sibling != kNone) {
    node(leaf.previous_sibling).next_sibling = leaf.next_sibling;
  } else if (leaf.parent != kNone) {
    node(leaf.parent).first_child = leaf.next_sibling;
  }
  leaf = {};
  --num_pages_;
  pages_.release(std::span(&page, 1));
}

// Gives up those of the latest pages behind `parent` that hold less than `tokens`, which follow now.
void PrefixTree::drop_begun(PageId parent, std::span<const std::int32_t> tokens) {
  int compared = 0;
  for (PageId page = node(parent).first_child; page != kNone && compared < kMostCompared; ++compared) {
    const PageId next = node(page).next_sibling;
    const auto held = tokens_of(page);
    if (node(page).is_idle && held.size() < tokens.size() && std::ranges::equal(held, tokens.first(held.size()))) {
      drop(page);
    }
    page = next;
  }
}

void PrefixTree::add(PageId page, PageId parent, std::uint64_t hash, std::span<const std::int32_t> tokens,
                     const Insertion& with) {
  MINISGL_CHECK(!contains(page), "page ", page, " is in the tree");
  pages_.retain(std::span(&page, 1));
  Node& added = node(page);
  added = {
      .parent = parent, .num_tokens = static_cast<std::int32_t>(tokens.size()), .hash = hash, .inserted = with.now};
  std::ranges::copy(tokens, tokens_.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(page) * page_size_));
  if (parent == kNone) {
    added.space = with.space;
  } else {
    added.next_sibling = node(parent).first_child;
    if (added.next_sibling != kNone) node(added.next_sibling).previous_sibling = page;
    node(parent).first_child = page;
  }
  if (tokens.size() == page_size_) {
    index_.put(page, hash, [this](PageId other) { return node(other).hash; });
    if (parent != kNone) note_child(parent, hash);
    if (events_) report_added(page, with.space);
  }
  ++num_pages_;
}

void PrefixTree::report_to(BlockEvents& events, std::string medium) {
  MINISGL_CHECK(num_pages_ == 0, "the tree has ", num_pages_, " pages already");
  events_ = &events;
  medium_ = std::move(medium);
  block_hashes_.resize(nodes_.size());
}

void PrefixTree::report_added(PageId page, const PrefixSpace& space) {
  const PageId parent = node(page).parent;
  std::optional<std::uint64_t> before;
  std::uint64_t seed = 0;
  if (parent != kNone) {
    before = seed = block_hashes_[static_cast<std::size_t>(parent)];
  } else if (space != PrefixSpace{}) {
    std::array<std::byte, sizeof(space.adapter) + sizeof(space.salt)> bytes;
    std::memcpy(bytes.data(), &space.adapter, sizeof(space.adapter));
    std::memcpy(bytes.data() + sizeof(space.adapter), space.salt.data(), sizeof(space.salt));
    seed = xxh64(bytes, 0);
  }
  const auto tokens = tokens_of(page);
  const std::uint64_t hash = xxh64(std::as_bytes(tokens), seed);
  block_hashes_[static_cast<std::size_t>(page)] = hash;
  events_->stored(medium_, before, hash, tokens, space.salt);
}

std::uint64_t PrefixTree::hash_of(PageId parent, const PrefixSpace& space, std::span<const std::int32_t> tokens) const {
  std::uint64_t hash = mix(seed_, static_cast<std::uint32_t>(parent));
  if (parent == kNone)
    hash = mix(mix(mix(hash, static_cast<std::uint32_t>(space.adapter)), space.salt[0]), space.salt[1]);
  for (; tokens.size() >= 2; tokens = tokens.subspan(2)) {
    hash =
        mix(hash, (std::uint64_t{static_cast<std::uint32_t>(tokens[0])} << 32) | static_cast<std::uint32_t>(tokens[1]));
  }
  if (!tokens.empty()) hash = mix(hash, static_cast<std::uint32_t>(tokens[0]));
  return hash;
}

PageId PrefixTree::find(PageId parent, const PrefixSpace& space, std::span<const std::int32_t> tokens,
                        std::uint64_t hash) const {
  return index_.find(hash, [&](PageId page) {
    const Node& candidate = node(page);
    return candidate.hash == hash && candidate.parent == parent && std::ranges::equal(tokens_of(page), tokens) &&
           (parent != kNone || candidate.space == space);
  });
}

// A full page follows `parent`, which the caller owns, as all that come before it: none of them is in a list. Where
// another one followed it before, prompts part behind it, even if that one is gone.
void PrefixTree::note_child(PageId parent, std::uint64_t hash) {
  const std::uint64_t before = std::exchange(node(parent).latest_child, hash);
  if (before == 0 || before == hash) return;
  for (PageId page = parent; page != kNone && !node(page).parts; page = node(page).parent) node(page).parts = true;
}

// Of a page of each list, or none, the one that is given up first. What follows a page was released no later, and has
// no bonus that the page hasn't, so it goes before it.
PageId PrefixTree::sooner_given_up(PageId own, PageId parting) const {
  if (own == kNone || parting == kNone) return own == kNone ? parting : own;
  const std::uint64_t bonus = kPartingBonus * nodes_.size();
  return node(own).idle_since <= node(parting).idle_since + bonus ? own : parting;
}

void PrefixTree::make_idle(PageId page) {
  Node& idle = node(page);
  IdleList& list = idle_list(idle);
  idle.is_idle = true;
  idle.idle_since = num_evicted_;
  idle.newer = kNone;
  idle.older = list.newest;
  (list.newest == kNone ? list.oldest : node(list.newest).newer) = page;
  list.newest = page;
  if (list.next_offered == kNone) list.next_offered = page;
  ++num_idle_;
  num_idle_copied_ += idle.is_copied;
}

void PrefixTree::end_idle(PageId page) {
  Node& used = node(page);
  IdleList& list = idle_list(used);
  (used.newer == kNone ? list.newest : node(used.newer).older) = used.older;
  (used.older == kNone ? list.oldest : node(used.older).newer) = used.newer;
  if (list.next_offered == page) list.next_offered = used.newer;
  used.is_idle = false;
  used.newer = used.older = kNone;
  --num_idle_;
  num_idle_copied_ -= used.is_copied;
  num_offered_ -= std::exchange(used.is_offered, false);
}

void PrefixTree::check(std::span<std::uint32_t> owners) const {
  std::int64_t num_pages = 0, num_idle = 0, num_copied = 0, num_children = 0, num_listed = 0, num_full = 0;
  for (PageId page = 0; page < pages_.num_total(); ++page) {
    const Node& here = node(page);
    if (here.parent == kAbsent) continue;
    ++num_pages, ++owners[static_cast<std::size_t>(page)];
    num_idle += here.is_idle;
    num_copied += here.is_idle && here.is_copied;
    num_children += here.parent != kNone;
    MINISGL_CHECK(here.is_idle == is_alone(page), "page ", page, " of ", pages_.num_owners(page),
                  " owners is taken for ", here.is_idle ? "idle" : "used");
    MINISGL_CHECK(here.num_tokens >= 1 && here.num_tokens <= static_cast<std::int32_t>(page_size_));
    if (here.num_tokens == static_cast<std::int32_t>(page_size_)) {
      ++num_full;
      MINISGL_CHECK(here.hash == hash_of(here.parent, here.space, tokens_of(page)));
      MINISGL_CHECK(find(here.parent, here.space, tokens_of(page), here.hash) == page, "page ", page, " isn't found");
    } else {
      MINISGL_CHECK(here.first_child == kNone, "page ", page, " has ", here.num_tokens, " tokens and children");
    }
    for (PageId child = here.first_child; child != kNone; child = node(child).next_sibling) {
      --num_children;
      MINISGL_CHECK(node(child).parent == page && (!here.is_idle || node(child).is_idle), "page ", child,
                    " behind page ", page);
    }
  }
  MINISGL_CHECK(num_copied == num_idle_copied_, num_copied, " idle pages are copied, not ", num_idle_copied_);
  std::int64_t num_offered = 0;
  std::vector<std::uint8_t> is_seen(nodes_.size(), 0);  // nearer to the end of its list
  for (const IdleList& list : idle_) {
    for (PageId page = list.oldest; page != kNone; page = node(page).newer, ++num_listed) {
      const Node& here = node(page);
      MINISGL_CHECK(&list == &idle_[here.parts ? 1 : 0], "page ", page, " is in the other list");
      MINISGL_CHECK(here.newer == kNone || here.idle_since <= node(here.newer).idle_since);
      for (PageId child = here.first_child; child != kNone; child = node(child).next_sibling) {
        const bool is_before = node(child).parts == here.parts
                                   ? is_seen[static_cast<std::size_t>(child)] != 0
                                   : here.parts && node(child).idle_since <= here.idle_since;
        MINISGL_CHECK(is_before, "page ", page, " is given up before page ", child);
      }
      is_seen[static_cast<std::size_t>(page)] = 1;
      num_offered += here.is_offered;
    }
  }
  MINISGL_CHECK(num_offered == num_offered_, num_offered, " pages are offered, not ", num_offered_);
  MINISGL_CHECK(num_pages == num_pages_ && num_children == 0 && num_idle == num_idle_ && num_listed == num_idle_);
  index_.check(num_full);
}

}  // namespace minisgl
