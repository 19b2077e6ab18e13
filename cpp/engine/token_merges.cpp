// Pairs of neighbours merge, those that come first in the list of merges first.
#include "engine/token_merges.h"

#include <algorithm>

namespace minisgl {
namespace {

// A longer text is tokenised in pieces of so many bytes: what takes its time grows with their square.
constexpr std::size_t kPiece = 256;

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

std::vector<std::int32_t> TokenMerges::tokenize(std::span<const std::uint8_t> text) const {
  std::vector<std::int32_t> tokens;
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
    for (;;) {
      Result best{-1, -1};
      std::size_t place = 0;
      for (std::size_t i = begin; i + 1 < tokens.size(); ++i) {
        const auto found = results_.find(key_of(tokens[i], tokens[i + 1]));
        if (found == results_.end() || (best.rank >= 0 && found->second.rank >= best.rank)) continue;
        best = found->second;
        place = i;
      }
      if (best.rank < 0) break;
      tokens[place] = best.merged;
      tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(place) + 1);
    }
  }
  return tokens;
}

}  // namespace minisgl
