// Neighbours in a chain become one event.
#include "cache/block_events.h"

#include <utility>

namespace minisgl {

void BlockEvents::stored(const std::string& medium, const std::optional<std::uint64_t>& parent, std::uint64_t hash,
                         std::span<const std::int32_t> tokens, const std::array<std::uint64_t, 2>& salt) {
  const std::lock_guard lock(mutex_);
  if (!has_room()) return;
  const bool follows = parent && !events_.empty() && events_.back().kind == BlockEvent::Kind::stored &&
                       events_.back().medium == medium && events_.back().hashes.back() == *parent;
  if (!follows) {
    events_.push_back({.kind = BlockEvent::Kind::stored, .medium = medium, .parent = parent, .salt = salt});
  }
  BlockEvent& event = events_.back();
  event.hashes.push_back(hash);
  event.tokens.insert(event.tokens.end(), tokens.begin(), tokens.end());
}

void BlockEvents::removed(const std::string& medium, std::uint64_t hash) {
  const std::lock_guard lock(mutex_);
  if (!has_room()) return;
  const bool joins =
      !events_.empty() && events_.back().kind == BlockEvent::Kind::removed && events_.back().medium == medium;
  if (!joins) events_.push_back({.kind = BlockEvent::Kind::removed, .medium = medium});
  events_.back().hashes.push_back(hash);
}

std::vector<BlockEvent> BlockEvents::take() {
  const std::lock_guard lock(mutex_);
  num_blocks_ = 0;
  is_lossy_ = false;
  return std::exchange(events_, {});
}

bool BlockEvents::has_room() {
  if (is_lossy_) return false;
  if (++num_blocks_ <= kMostBlocks) return true;
  events_.assign(1, {.kind = BlockEvent::Kind::cleared});
  is_lossy_ = true;
  return false;
}

}  // namespace minisgl
