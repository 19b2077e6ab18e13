// A node per block and replica, in two indices and two lists.
#include "cache/sent_prefixes.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "core/error.h"

namespace minisgl {
SentPrefixes::SentPrefixes() : seed_(random_seed()) {}

void SentPrefixes::add(int replica, std::int64_t max_blocks) {
  MINISGL_CHECK(replica >= 0 && replica < kMostReplicas, "replica ", replica, " of at most ", kMostReplicas);
  MINISGL_CHECK(!has(replica), "replica ", replica, " is there already");
  if (replicas_.size() <= static_cast<std::size_t>(replica)) replicas_.resize(static_cast<std::size_t>(replica) + 1);
  replicas_[static_cast<std::size_t>(replica)] = {.is_there = true, .max_blocks = max_blocks};
}

void SentPrefixes::remove(int replica) {
  Replica& removed = at(replica);
  while (removed.oldest != kNone) drop(removed.oldest);
  removed = {};
}

bool SentPrefixes::has(int replica) const {
  return replica >= 0 && std::cmp_less(replica, replicas_.size()) &&
         replicas_[static_cast<std::size_t>(replica)].is_there;
}

void SentPrefixes::check_has(int replica) const {
  MINISGL_CHECK(has(replica), "replica ", replica, " is not there");
}

void SentPrefixes::extend(std::string_view space, std::span<const std::int32_t> tokens,
                          std::vector<std::uint64_t>& keys) const {
  std::uint64_t key = seed_;
  if (keys.empty()) {
    key = mix(key, space.size());
    for (const char byte : space) key = mix(key, static_cast<unsigned char>(byte));
  } else {
    key = keys.back();
  }
  for (; tokens.size() >= kBlock; tokens = tokens.subspan(kBlock)) {
    // Four chains side by side, of two tokens a link: one would wait for itself.
    std::array<std::uint64_t, 4> lanes = {key, key ^ 1, key ^ 2, key ^ 3};
    for (std::size_t i = 0; i < kBlock; i += 2 * lanes.size()) {
      for (std::size_t lane = 0; lane < lanes.size(); ++lane) {
        const auto first = static_cast<std::uint32_t>(tokens[i + 2 * lane]);
        const auto second = static_cast<std::uint32_t>(tokens[i + 2 * lane + 1]);
        lanes[lane] = mix(lanes[lane], std::uint64_t{first} << 32 | second);
      }
    }
    key = mix(seed_, lanes[0]);
    for (const std::uint64_t lane : std::span(lanes).subspan(1)) key = mix(key, lane);
    keys.push_back(key);
  }
}

std::int64_t SentPrefixes::matched(int replica, std::span<const std::uint64_t> keys) const {
  check_has(replica);
  const auto end = std::ranges::partition_point(keys, [&](std::uint64_t key) { return find(key, replica) != kNone; });
  return end - keys.begin();
}

std::int64_t SentPrefixes::insert(int replica, std::span<const std::uint64_t> keys) {
  Replica& to = at(replica);
  keys = keys.first(std::min(keys.size(), static_cast<std::size_t>(to.max_blocks)));
  std::int64_t known = 0;
  for (std::size_t i = keys.size(); i-- > 0;) {  // the first one is the newest
    const NodeId node = find(keys[i], replica);
    if (node == kNone) {
      make(keys[i], replica);
    } else {
      unlink(node);
      link_newest(node);
      ++known;
    }
  }
  while (to.num_blocks > to.max_blocks) drop(to.oldest);
  return known;
}

SentPrefixes::Choice SentPrefixes::choose(std::span<const std::uint64_t> keys, std::span<const int> excluded) const {
  const auto may = [&](int replica) {
    return excluded.empty() || std::ranges::find(excluded, replica) == excluded.end();
  };
  Choice choice;
  std::pair<std::int64_t, std::int64_t> least_score(std::numeric_limits<std::int64_t>::max(), 0), best_score;
  for (int replica = 0; std::cmp_less(replica, replicas_.size()); ++replica) {
    const Replica& here = replicas_[static_cast<std::size_t>(replica)];
    if (!here.is_there || !may(replica)) continue;
    ++choice.num_replicas;
    const std::pair score(here.load, here.turn);
    if (score < least_score) least_score = score, choice.least = replica;
  }
  choice.best = choice.least, best_score = least_score;
  if (choice.least < 0) return choice;
  // From the last block that anybody has to the first one, by way of those that more replicas have.
  std::size_t end = keys.size();
  std::uint32_t count = 0;
  for (NodeId node; (node = first_beyond(keys, end, count)) != kNone;) {
    count = nodes_[node].num_same;
    const auto blocks = static_cast<std::int64_t>(end);
    for (; node != kNone; node = nodes_[node].next) {
      const int replica = nodes_[node].replica;
      const Replica& here = replicas_[static_cast<std::size_t>(replica)];
      const std::pair score(here.load - blocks * static_cast<std::int64_t>(kBlock), here.turn);
      if (score < best_score && may(replica)) {
        best_score = score, choice.best = replica, choice.num_blocks = blocks;
      }
    }
  }
  return choice;
}

// Of the first `end` blocks the last one that more than `count` replicas have; `end` is then behind it.
SentPrefixes::NodeId SentPrefixes::first_beyond(std::span<const std::uint64_t> keys, std::size_t& end,
                                                std::uint32_t count) const {
  const auto behind = std::ranges::partition_point(keys.first(end), [&](std::uint64_t key) {
    const NodeId node = first_of(key);
    return node != kNone && nodes_[node].num_same > count;
  });
  end = static_cast<std::size_t>(behind - keys.begin());
  return end == 0 ? kNone : first_of(keys[end - 1]);
}

std::uint64_t SentPrefixes::hash_of(std::uint64_t key, int replica) {
  return mix(key, static_cast<std::uint64_t>(replica));
}

SentPrefixes::NodeId SentPrefixes::find(std::uint64_t key, int replica) const {
  return own_.find(hash_of(key, replica),
                   [&](NodeId node) { return nodes_[node].key == key && nodes_[node].replica == replica; });
}

SentPrefixes::NodeId SentPrefixes::first_of(std::uint64_t key) const {
  return first_.find(key, [&](NodeId node) { return nodes_[node].key == key; });
}

void SentPrefixes::make(std::uint64_t key, int replica) {
  NodeId made = free_;
  if (made == kNone) {
    MINISGL_CHECK(nodes_.size() < kNone, "too many blocks");
    made = static_cast<NodeId>(nodes_.size());
    nodes_.emplace_back();
  } else {
    free_ = nodes_[made].older;
  }
  const NodeId first = first_of(key);
  nodes_[made] = {.key = key, .replica = replica};
  if (first == kNone) {
    nodes_[made].num_same = 1;
    first_.put(made, key, [this](NodeId node) { return hash_of_first(node); });
  } else {  // behind the first one, which stays what the index names
    ++nodes_[first].num_same;
    const NodeId next = std::exchange(nodes_[first].next, made);
    nodes_[made].previous = first;
    nodes_[made].next = next;
    if (next != kNone) nodes_[next].previous = made;
  }
  own_.put(made, hash_of(key, replica), [this](NodeId node) { return hash_of_own(node); });
  link_newest(made);
  ++at(replica).num_blocks;
}

void SentPrefixes::drop(NodeId dropped) {
  Node& node = nodes_[dropped];
  --at(node.replica).num_blocks;
  unlink(dropped);
  own_.take_out(dropped, hash_of_own(dropped), [this](NodeId other) { return hash_of_own(other); });
  if (node.previous != kNone) {
    --nodes_[first_of(node.key)].num_same;
    nodes_[node.previous].next = node.next;
    if (node.next != kNone) nodes_[node.next].previous = node.previous;
  } else {
    first_.take_out(dropped, node.key, [this](NodeId other) { return hash_of_first(other); });
    if (node.next != kNone) {
      nodes_[node.next].previous = kNone;
      nodes_[node.next].num_same = node.num_same - 1;
      first_.put(node.next, node.key, [this](NodeId other) { return hash_of_first(other); });
    }
  }
  node = {.older = std::exchange(free_, dropped)};
}

void SentPrefixes::link_newest(NodeId linked) {
  Node& node = nodes_[linked];
  Replica& replica = at(node.replica);
  node.newer = kNone;
  node.older = replica.newest;
  (replica.newest == kNone ? replica.oldest : nodes_[replica.newest].newer) = linked;
  replica.newest = linked;
}

void SentPrefixes::unlink(NodeId unlinked) {
  const Node& node = nodes_[unlinked];
  Replica& replica = at(node.replica);
  (node.newer == kNone ? replica.newest : nodes_[node.newer].older) = node.older;
  (node.older == kNone ? replica.oldest : nodes_[node.older].newer) = node.newer;
}

void SentPrefixes::check() const {
  std::int64_t num_nodes = 0, num_first = 0;
  for (int replica = 0; std::cmp_less(replica, replicas_.size()); ++replica) {
    const Replica& here = replicas_[static_cast<std::size_t>(replica)];
    std::int64_t count = 0;
    for (NodeId id = here.oldest, older = kNone; id != kNone; older = id, id = nodes_[id].newer, ++count) {
      const Node& node = nodes_[id];
      MINISGL_CHECK(node.replica == replica && node.older == older, "a block of replica ", replica);
      MINISGL_CHECK(find(node.key, replica) == id, "a block of replica ", replica, " isn't found");
      if (node.previous != kNone) continue;
      ++num_first;
      MINISGL_CHECK(first_of(node.key) == id, "a first block isn't found");
      std::uint32_t num_same = 0;
      for (NodeId same = id; same != kNone; same = nodes_[same].next) {
        ++num_same;
        MINISGL_CHECK(nodes_[same].key == node.key, "blocks that aren't the same");
      }
      MINISGL_CHECK(num_same == node.num_same, num_same, " blocks are the same, and ", node.num_same, " are counted");
    }
    MINISGL_CHECK(count == here.num_blocks && count <= here.max_blocks, "replica ", replica, " has ", count,
                  " blocks; counted: ", here.num_blocks, ", room: ", here.max_blocks);
    num_nodes += count;
  }
  own_.check(num_nodes);
  first_.check(num_first);
}

}  // namespace minisgl
