// What was sent to which replica, for a router: chains of hashed blocks, bounded per replica. No device code, no
// tokens.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "cache/probing_index.h"

namespace minisgl {

// A block is kBlock tokens, and its key hashes the key before it with these tokens: it stands for all of a prompt up to
// the block's end, and for the space that the prompt is in. Tokens aren't kept. A router that took one chain for
// another would send a request where it is computed as any other.
//
// Each replica has the blocks that it was sent last, as many as its own cache holds. As in that cache, what was used
// longest ago goes first, and no block before those that follow it: who has a block has all blocks before it. So the
// replicas that have a block are among those that have the one before it, and as many are the same ones.
//
// Replicas are small numbers of the caller's; all others throw.
class SentPrefixes {
 public:
  static constexpr std::size_t kBlock = 128;  // tokens
  static constexpr int kMostReplicas = 1 << 16;

  SentPrefixes();

  // A replica with nothing in its cache, which has room for `max_blocks`, and nothing to do.
  void add(int replica, std::int64_t max_blocks);
  // Forgets the replica and what it had, O(its blocks).
  void remove(int replica);
  bool has(int replica) const;
  std::int64_t num_blocks(int replica) const { return at(replica).num_blocks; }

  // Appends the keys of the whole blocks of `tokens`, which follow the blocks of `keys` in the space.
  void extend(std::string_view space, std::span<const std::int32_t> tokens, std::vector<std::uint64_t>& keys) const;

  // Blocks from the first one on that the replica has.
  std::int64_t matched(int replica, std::span<const std::uint64_t> keys) const;
  // The replica is sent these blocks now; how many of them it had.
  std::int64_t insert(int replica, std::span<const std::uint64_t> keys);

  // What speaks against the replica, in tokens that another one would have of a prompt.
  void set_load(int replica, std::int64_t load) { at(replica).load = load; }
  // The replica was chosen: among equal ones the one goes first whose turn was longest ago.
  void take_turn(int replica) { at(replica).turn = ++turn_; }

  struct Choice {
    int least = -1;               // has the least load; -1: there is none
    int best = -1;                // has the least to do when what it has of the prompt is taken off
    std::int64_t num_blocks = 0;  // of the prompt that the best one has
    int num_replicas = 0;         // that could be chosen
  };
  // Among the replicas without `excluded`.
  Choice choose(std::span<const std::uint64_t> keys, std::span<const int> excluded) const;

  // Verifies everything, O(blocks).
  void check() const;

 private:
  using NodeId = std::uint32_t;
  static constexpr NodeId kNone = ~NodeId{0};

  // A block of a replica.
  struct Node {
    std::uint64_t key = 0;
    NodeId newer = kNone, older = kNone;    // the replica's blocks; free ones through `older`
    NodeId next = kNone, previous = kNone;  // the same block of other replicas
    std::uint32_t num_same = 0;             // of the first one of these: how many there are
    std::int32_t replica = -1;
  };
  struct Replica {
    bool is_there = false;
    std::int64_t max_blocks = 0, num_blocks = 0;
    NodeId newest = kNone, oldest = kNone;
    std::int64_t load = 0, turn = 0;
  };

  void check_has(int replica) const;
  const Replica& at(int replica) const {
    check_has(replica);
    return replicas_[static_cast<std::size_t>(replica)];
  }
  Replica& at(int replica) {
    check_has(replica);
    return replicas_[static_cast<std::size_t>(replica)];
  }
  static std::uint64_t hash_of(std::uint64_t key, int replica);
  NodeId find(std::uint64_t key, int replica) const;
  NodeId first_of(std::uint64_t key) const;
  NodeId first_beyond(std::span<const std::uint64_t> keys, std::size_t& end, std::uint32_t count) const;
  std::uint64_t hash_of_own(NodeId node) const { return hash_of(nodes_[node].key, nodes_[node].replica); }
  std::uint64_t hash_of_first(NodeId node) const { return nodes_[node].key; }

  void make(std::uint64_t key, int replica);
  void drop(NodeId node);
  void link_newest(NodeId node);
  void unlink(NodeId node);

  std::uint64_t seed_;  // of the keys, so that nobody can make them collide
  std::vector<Replica> replicas_;
  std::vector<Node> nodes_;
  NodeId free_ = kNone;
  ProbingIndex<NodeId> own_;    // by key and replica
  ProbingIndex<NodeId> first_;  // by key: the first one of the nodes with it
  std::int64_t turn_ = 0;
};

}  // namespace minisgl
