// Pairs of neighbours merge, those that come first in the list of merges first.
#include "engine/token_merges.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace minisgl {
namespace {

// A longer text is tokenised in pieces of so many bytes, since the time grows with the square of a piece.
constexpr std::size_t kPiece = 256;

constexpr std::int32_t kNoRank = std::numeric_limits<std::int32_t>::max();  // of a pair that doesn't merge

std::uint64_t key_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
}

// The bytes of a character or a byte as a number, which no two have in common.
template <typename Bytes>
std::uint32_t unit_of(const Bytes& bytes) {
  std::uint32_t unit = 0;
  for (const auto byte : bytes) unit = unit << 8 | static_cast<std::uint8_t>(byte);
  return unit;
}

constexpr std::size_t kMostUnit = 4;  // bytes of a character in UTF-8

bool is_inside(std::uint8_t byte) {  // a character that began before
  return (byte & 0xc0) == 0x80;
}

}  // namespace

TokenMerges::TokenMerges(std::span<const std::uint32_t> lengths, std::string_view bytes,
                         std::span<const TokenMerge> merges) {
  std::vector<std::size_t> begins(lengths.size());
  std::exclusive_scan(lengths.begin(), lengths.end(), begins.begin(), std::size_t{0});
  results_.reserve(merges.size());
  const auto is_there = [&](std::int32_t token) { return token >= 0 && token < std::ssize(lengths); };
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const auto& [left, right, merged] = merges[i];
    if (!is_there(merged)) continue;
    if (left == TokenMerge::kNone && right == TokenMerge::kNone) {
      const auto token = static_cast<std::size_t>(merged);
      if (lengths[token] == 0 || lengths[token] > kMostUnit) continue;
      units_.try_emplace(unit_of(bytes.substr(begins[token], lengths[token])), merged);
      continue;
    }
    if (!is_there(left) || !is_there(right)) continue;
    results_.try_emplace(key_of(left, right), Result{static_cast<std::int32_t>(i), merged});
  }
}

TokenMerges::Result TokenMerges::find(std::int32_t left, std::int32_t right) const {
  const auto found = results_.find(key_of(left, right));
  return found == results_.end() ? Result{kNoRank, -1} : found->second;
}

// The token that the text's first character is to begin with, or its first byte; the text goes on behind it. -1: none.
std::int32_t TokenMerges::begin(std::span<const std::uint8_t>& text) const {
  std::size_t size = 1;
  while (size < std::min(text.size(), kMostUnit) && is_inside(text[size])) ++size;
  for (const std::size_t taken : {size, std::size_t{1}}) {
    const auto found = units_.find(unit_of(text.first(taken)));
    if (found == units_.end()) continue;
    text = text.subspan(taken);
    return found->second;
  }
  return -1;
}

std::vector<std::int32_t> TokenMerges::tokenize(std::span<const std::uint8_t> text) const {
  std::vector<std::int32_t> tokens;
  std::vector<Result> pairs;  // what each of the piece's tokens and the next one become
  while (!text.empty()) {
    std::size_t size = std::min(text.size(), kPiece);
    while (size < text.size() && size > 1 && is_inside(text[size])) --size;
    std::span<const std::uint8_t> piece = text.first(size);
    text = text.subspan(size);
    const std::size_t first = tokens.size();
    while (!piece.empty()) {
      const std::int32_t token = begin(piece);
      if (token < 0) {
        piece = text = {};
      } else {
        tokens.push_back(token);
      }
    }
    pairs.clear();
    for (std::size_t i = first; i + 1 < tokens.size(); ++i) pairs.push_back(find(tokens[i], tokens[i + 1]));
    while (!pairs.empty()) {
      const auto best = std::ranges::min_element(pairs, {}, &Result::rank);  // the leftmost of them
      if (best->rank == kNoRank) break;
      const auto place = static_cast<std::size_t>(best - pairs.begin());
      std::int32_t* const merged = tokens.data() + first + place;
      *merged = best->merged;
      tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(first + place) + 1);
      pairs.erase(best);
      if (place < pairs.size()) pairs[place] = find(merged[0], merged[1]);
      if (place > 0) pairs[place - 1] = find(merged[-1], merged[0]);
    }
  }
  return tokens;
}

}  // namespace minisgl
