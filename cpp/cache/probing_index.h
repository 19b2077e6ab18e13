// Numbers found by hashes of what they stand for, which lies elsewhere.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "core/error.h"

namespace minisgl {

// `hash` with one more value in it.
inline std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
  return hash ^ (hash >> 32);
}

// A first hash that nobody knows, so that nobody can make others collide.
inline std::uint64_t random_seed() {
  std::random_device random;
  return (std::uint64_t{random()} << 32) | random();
}

// Linear probing in a power of two, at most half full. `hash_of(id)` is the hash that an id was put in with.
template <typename Id>
class ProbingIndex {
 public:
  static constexpr Id kNone = static_cast<Id>(-1);

  // Of so many ids without growing.
  explicit ProbingIndex(std::size_t count = 32) : slots_(std::bit_ceil(2 * count), kNone) {}

  // Of the ids with this hash, and perhaps others, the one that is meant; kNone.
  template <typename IsMeant>
  Id find(std::uint64_t hash, const IsMeant& is_meant) const {
    for (std::size_t slot = slot_of(hash); slots_[slot] != kNone; slot = slot_of(slot + 1)) {
      if (is_meant(slots_[slot])) return slots_[slot];
    }
    return kNone;
  }

  template <typename HashOf>
  void put(Id id, std::uint64_t hash, const HashOf& hash_of) {
    if (2 * ++num_used_ > slots_.size()) {
      const std::vector<Id> before = std::exchange(slots_, std::vector<Id>(2 * slots_.size(), kNone));
      for (const Id known : before) {
        if (known != kNone) place(known, hash_of(known));
      }
    }
    place(id, hash);
  }

  // The id must be there. Those behind it that would not be found past the gap move up.
  template <typename HashOf>
  void take_out(Id id, std::uint64_t hash, const HashOf& hash_of) {
    std::size_t gap = slot_of(hash);
    while (slots_[gap] != id) gap = slot_of(gap + 1);
    for (std::size_t slot = slot_of(gap + 1); slots_[slot] != kNone; slot = slot_of(slot + 1)) {
      const std::size_t home = slot_of(hash_of(slots_[slot]));
      if (slot_of(slot - home) < slot_of(slot - gap)) continue;
      slots_[gap] = slots_[slot];
      gap = slot;
    }
    slots_[gap] = kNone;
    --num_used_;
  }

  // Verifies that it holds so many.
  void check(std::int64_t count) const {
    const std::int64_t used = std::ssize(slots_) - std::ranges::count(slots_, kNone);
    MINISGL_CHECK(used == count && std::cmp_equal(num_used_, count), used, " are in the index, not ", count);
  }

 private:
  std::size_t slot_of(std::uint64_t hash) const { return static_cast<std::size_t>(hash) & (slots_.size() - 1); }
  void place(Id id, std::uint64_t hash) {
    std::size_t slot = slot_of(hash);
    while (slots_[slot] != kNone) slot = slot_of(slot + 1);
    slots_[slot] = id;
  }

  std::vector<Id> slots_;
  std::size_t num_used_ = 0;
};

}  // namespace minisgl
