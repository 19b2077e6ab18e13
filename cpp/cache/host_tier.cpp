// Two trees over two sets of pages, and the copies between them.
#include "cache/host_tier.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace minisgl {

HostTier::HostTier(PrefixTree& device, const PageAllocator& device_pages, std::int64_t num_pages, int page_size)
    : device_(device), device_pages_(device_pages), pages_(num_pages), tree_(pages_, page_size) {
  device_of_.assign(static_cast<std::size_t>(num_pages), -1);
  is_coming_.assign(static_cast<std::size_t>(num_pages), 0);
  MINISGL_CHECK(pages_.allocate(num_pages, path_));  // the tier's own until they have memory
}

void HostTier::set_ready(std::int64_t count) {
  MINISGL_CHECK(count >= num_ready_ && count <= num_total(), count, " pages are ready, ", num_ready_, " were");
  std::vector<PageId> ready;
  while (num_ready_ < count) ready.push_back(static_cast<PageId>(num_ready_++));
  std::ranges::reverse(ready);  // the first are given out first
  pages_.release(ready);
}

HostTier::Found HostTier::find(const PrefixSpace& space, std::span<const std::int32_t> tokens, std::int64_t num_known) {
  path_.clear();
  tree_.take(space, tokens, path_);
  tree_.release(path_);
  const bool is_more = num_known < std::ssize(path_);
  return {
      .num_pages = std::ssize(path_),
      .is_coming = is_more && is_coming_[static_cast<std::size_t>(path_[static_cast<std::size_t>(num_known)])] != 0};
}

void HostTier::bring(const PrefixSpace& space, std::span<const std::int32_t> tokens, std::span<const PageId> known) {
  const std::int64_t num_known = std::ssize(known), count = std::ssize(path_) - num_known;
  tree_.retain(path_);
  Bringing& bringing = bringing_.emplace_back();
  bringing.space = space;
  bringing.tokens.assign(tokens.begin(),
                         tokens.begin() + std::ssize(path_) * std::ssize(tree_.tokens_of(path_.front())));
  bringing.host = path_;
  bringing.device.assign(known.begin(), known.end());
  bringing.num_known = bringing.num_ordered = bringing.num_done = num_known;
  MINISGL_CHECK(device_.allocate(count, bringing.device), "no room for ", count, " pages of the host");
  for (const PageId page : std::span(path_).subspan(static_cast<std::size_t>(num_known))) {
    is_coming_[static_cast<std::size_t>(page)] = 1;
  }
  num_moving_ += count;
}

// Whether the host's tree has the page of the device's.
bool HostTier::is_saved(PageId device_page) const {
  const PageId twin = device_.twin(device_page);
  return twin >= 0 && tree_.contains(twin) && device_of_[static_cast<std::size_t>(twin)] == device_page;
}

void HostTier::link(PageId device_page, PageId host_page) {
  device_.set_twin(device_page, host_page);
  device_of_[static_cast<std::size_t>(host_page)] = device_page;
}

const TierCopies* HostTier::next_copies(std::int64_t num_wanted) {
  if (under_way_.size() == kMostUnderWay) return nullptr;
  UnderWay& next = under_way_.emplace_back();
  order_bringing(next.copies);
  if (next.copies.pages.empty()) order_saving(next, num_wanted);
  if (next.copies.pages.empty()) {
    tree_.release(next.held);
    under_way_.pop_back();
    return nullptr;
  }
  next.copies.number = ++num_ordered_;
  return &next.copies;
}

void HostTier::order_bringing(TierCopies& copies) {
  const auto waiting = std::ranges::find_if(
      bringing_, [](const Bringing& bringing) { return bringing.num_ordered < std::ssize(bringing.host); });
  if (waiting == bringing_.end()) return;
  for (; waiting->num_ordered < std::ssize(waiting->host) && std::ssize(copies.pages) < kMostPages;
       ++waiting->num_ordered) {
    const auto at = static_cast<std::size_t>(waiting->num_ordered);
    copies.pages.push_back({.source = waiting->host[at], .destination = waiting->device[at]});
  }
}

void HostTier::order_saving(UnderWay& order, std::int64_t num_wanted) {
  order.copies.to_host = true;
  const PageId unfinished = std::exchange(unfinished_, PrefixTree::kRoot);
  bool has_room = unfinished == PrefixTree::kRoot || !device_.is_offered(unfinished) || save(unfinished, order);
  while (has_room && device_pages_.num_free() + device_.num_offered() < num_wanted) {
    const PageId page = device_.offer();
    if (page < 0) break;
    if (device_.is_full(page)) has_room = save(page, order);
  }
  num_moving_ += std::ssize(order.copies.pages);
}

// Orders copies of the pages of a path that aren't in the host's tree, the first of them first. False where there was
// no room for all of them.
bool HostTier::save(PageId page, UnderWay& order) {
  chain_.clear();
  PageId above = page;
  for (; above != PrefixTree::kRoot && !is_saved(above); above = device_.parent(above)) chain_.push_back(above);
  if (chain_.empty()) return true;
  PageId parent = PrefixTree::kRoot;
  PrefixSpace space;
  if (above == PrefixTree::kRoot) {
    space = device_.space_of(chain_.back());
  } else {
    parent = device_.twin(above);
    tree_.take_path(parent, order.held);
  }
  std::vector<PageId> replaced;  // none: the page isn't there
  for (; !chain_.empty(); chain_.pop_back()) {
    const PageId here = chain_.back();
    const std::span<const std::int32_t> tokens = device_.tokens_of(here);
    const std::size_t num_held = order.held.size();
    tree_.take(space, tokens, order.held, parent);  // it was computed again since it was copied
    if (order.held.size() == num_held) {
      if (std::ssize(order.copies.pages) == kMostPages) {
        unfinished_ = page;
        return false;
      }
      if (!tree_.allocate(1, order.held)) return false;
      tree_.insert({.space = space, .tokens = tokens, .parent = parent, .now = num_ordered_},
                   std::span(order.held).last(1), replaced);
      device_.begin_copy(here);
      order.copies.pages.push_back({.source = here, .destination = order.held.back()});
    }
    parent = order.held.back();
    link(here, parent);
  }
  return true;
}

void HostTier::finish(std::uint64_t number, std::uint64_t now) {
  for (; !under_way_.empty() && under_way_.front().copies.number <= number; under_way_.pop_front()) {
    UnderWay& done = under_way_.front();
    const std::int64_t count = std::ssize(done.copies.pages);
    num_done_ = done.copies.number;
    num_moving_ -= count;
    if (done.copies.to_host) {
      for (const PagePair& pair : done.copies.pages) device_.end_copy(pair.source);
      tree_.release(done.held);
      num_copied_out_ += static_cast<std::uint64_t>(count);
      continue;
    }
    Bringing& bringing = bringing_.front();
    bringing.num_done += count;
    num_copied_in_ += static_cast<std::uint64_t>(count);
    if (bringing.num_done < std::ssize(bringing.host)) continue;
    settle(bringing, now);
    bringing_.pop_front();
  }
}

// All of it came: the device's tree has it, or had computed it meanwhile.
void HostTier::settle(Bringing& bringing, std::uint64_t now) {
  std::vector<PageId> replaced;
  device_.insert({.space = bringing.space, .tokens = bringing.tokens, .num_known = bringing.num_known, .now = now},
                 bringing.device, replaced);
  for (std::size_t i = 0; i < bringing.host.size(); ++i) {
    is_coming_[static_cast<std::size_t>(bringing.host[i])] = 0;
    if (!is_saved(bringing.device[i])) link(bringing.device[i], bringing.host[i]);
  }
  device_.release(replaced);
  device_.release(bringing.device);
  tree_.release(bringing.host);
}

void HostTier::check(std::span<std::uint32_t> device_owners) const {
  std::vector<std::uint32_t> owners(static_cast<std::size_t>(num_total()), 0);
  std::vector<std::uint8_t> coming(owners.size(), 0);
  std::int64_t num_moving = 0;
  for (std::int64_t page = num_ready_; page < num_total(); ++page) ++owners[static_cast<std::size_t>(page)];
  for (const UnderWay& order : under_way_) {
    for (const PageId page : order.held) ++owners[static_cast<std::size_t>(page)];
    if (!order.copies.to_host) continue;
    num_moving += std::ssize(order.copies.pages);
    for (const PagePair& pair : order.copies.pages) ++device_owners[static_cast<std::size_t>(pair.source)];
  }
  for (const Bringing& bringing : bringing_) {
    for (const PageId page : bringing.host) ++owners[static_cast<std::size_t>(page)];
    for (const PageId page : bringing.device) ++device_owners[static_cast<std::size_t>(page)];
    num_moving += std::ssize(bringing.host) - bringing.num_done;
    for (std::size_t i = static_cast<std::size_t>(bringing.num_known); i < bringing.host.size(); ++i) {
      MINISGL_CHECK(std::exchange(coming[static_cast<std::size_t>(bringing.host[i])], 1) == 0, "page ",
                    bringing.host[i], " of the host comes twice");
    }
  }
  MINISGL_CHECK(coming == is_coming_ && num_moving == num_moving_, num_moving, " pages move, not ", num_moving_);
  tree_.check(owners);
  pages_.check(owners);
}

}  // namespace minisgl
