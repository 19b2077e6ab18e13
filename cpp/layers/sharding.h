// How a decoder's matrices are cut over tensor-parallel ranks: the one table of it.
#pragma once

#include <cstdint>
#include <string_view>

namespace minisgl {

// What a matrix [out_features, in_features] does.
enum class Role : std::uint8_t { query, key, value, attention_output, gate, up, down, router, vocabulary };

enum class Cut : std::uint8_t {
  rows,     // output features: a rank computes its own, and has their biases
  columns,  // input features: what a rank computes is its share of a sum over ranks. Rank 0 alone adds the bias
};

// How the units of a cut (heads, features, tokens) are dealt out.
enum class Split : std::uint8_t {
  even,            // the same number each
  even_or_shared,  // where there are fewer units than ranks, ranks in a row share one
  whole,           // every rank has all of them
  padded,          // the same number each, the last ranks' filled up with rows of zeros
};

struct ShardRule {
  Cut cut;
  Split split;
};

constexpr ShardRule shard_rule(Role role) {
  switch (role) {
    case Role::query: return {Cut::rows, Split::even};                // query heads
    case Role::key:                                                   // KV heads
    case Role::value: return {Cut::rows, Split::even_or_shared};      // KV heads
    case Role::attention_output: return {Cut::columns, Split::even};  // query heads
    case Role::gate:                                                  // intermediate features
    case Role::up: return {Cut::rows, Split::even};                   // intermediate features
    case Role::down: return {Cut::columns, Split::even};              // intermediate features
    case Role::router: return {Cut::rows, Split::whole};              // experts
    case Role::vocabulary: return {Cut::rows, Split::padded};         // tokens, of the embedding and of the head
  }
  return {Cut::rows, Split::even};
}

// Whole numbers [first, first + count).
struct Slice {
  std::int64_t first = 0;
  std::int64_t count = 0;
  constexpr Slice operator*(std::int64_t unit) const { return {first * unit, count * unit}; }
};

// a / b. Throws InputError ("9 query heads can't be divided evenly by 2") where b does not divide a.
std::int64_t divide_even(std::int64_t a, std::int64_t b, std::string_view what = "");

bool can_split(Split split, std::int64_t units, int num_ranks);

// The rank's units. Of a padded split the slice may reach beyond `units`, or lie there wholly: its length is the same
// on every rank, a multiple of 8 unless there is one rank. Throws InputError where the units can't be split so.
Slice rank_slice(Split split, std::int64_t units, int rank, int num_ranks);

}  // namespace minisgl
