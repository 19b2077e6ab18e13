// Pairs of neighbours merge, those that come first in the list of merges first.
#include "engine/token_merges.h"

#include <algorithm>
#include <limits>

namespace minisgl {
namespace {

// A longer text is tokenised in pieces of so many bytes, since the time grows with the square of a piece.
constexpr std::size_t kPiece = 256;

constexpr std::int32_t kNoRank = std::numeric_limits<std::int32_t>::max();  // of a pair that doesn't merge

std::uint64_t key_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
}

}  // namespace

TokenMerges::TokenMerges(std::span<const std::uint32_t> lengths, std::string_view bytes,
                         std::span<const TokenMerge> merges) {
  bytes_.fill(-1);
  std::size_t at = 0;
  for (std::size_t token = 0; token < lengths.size(); at += lengths[token++]) {
    if (lengths[token] == 1) bytes_[static_cast<std::uint8_t>(bytes[at])] = static_cast<std::int32_t>(token);
  }
  results_.reserve(merges.size());
  const auto is_there = [&](std::int32_t token) { return token >= 0 && token < std::ssize(lengths); };
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const auto& [left, right, merged] = merges[i];
    if (!is_there(left) || !is_there(right) || !is_there(merged)) continue;
    results_.try_emplace(key_of(left, right), Result{static_cast<std::int32_t>(i), merged});
  }
}

TokenMerges::Result TokenMerges::find(std::int32_t left, std::int32_t right) const {
  const auto found = results_.find(key_of(left, right));
  return found == results_.end() ? Result{kNoRank, -1} : found->second;
}

std::vector<std::int32_t> TokenMerges::tokenize(std::span<const std::uint8_t> text) const {
  std::vector<std::int32_t> tokens;
  std::vector<Result> pairs;  // what each of the piece's tokens and the next one become
  while (!text.empty()) {
    const std::span<const std::uint8_t> piece = text.first(std::min(text.size(), kPiece));
    text = text.subspan(piece.size());
    const std::size_t begin = tokens.size();
    for (const std::uint8_t byte : piece) {
      if (bytes_[byte] < 0) {
        text = {};
        break;
      }
      tokens.push_back(bytes_[byte]);
    }
    pairs.clear();
    for (std::size_t i = begin; i + 1 < tokens.size(); ++i) pairs.push_back(find(tokens[i], tokens[i + 1]));
    while (!pairs.empty()) {
      const auto best = std::ranges::min_element(pairs, {}, &Result::rank);  // the leftmost of them
      if (best->rank == kNoRank) break;
      const auto place = static_cast<std::size_t>(best - pairs.begin());
      std::int32_t* const merged = tokens.data() + begin + place;
      *merged = best->merged;
      tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(begin + place) + 1);
      pairs.erase(best);
      if (place < pairs.size()) pairs[place] = find(merged[0], merged[1]);
      if (place > 0) pairs[place - 1] = find(merged[-1], merged[0]);
    }
  }
  return tokens;
}

}  // namespace minisgl
