// A model's own tokens of a text, for vocabularies whose tokens are made by merging pairs: byte-level BPE, and
// SentencePiece's BPE.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace minisgl {

// Two tokens and the one that they become. Where both are kNone, `merged` is what a character or a byte is to begin
// with.
struct TokenMerge {
  static constexpr std::int32_t kNone = -1;
  std::int32_t left, right, merged;
};

class TokenMerges {
 public:
  // `merges`: those made first stand first, and of the tokens of a character the one that counts; one of a token that
  // isn't there is left out. `lengths` and `bytes` are a GrammarVocabulary's.
  TokenMerges(std::span<const std::uint32_t> lengths, std::string_view bytes, std::span<const TokenMerge> merges);

  // The tokens of a text, up to a byte that has none. A character that has no token is its bytes. Many tokenizers cut a
  // text into words first: here nothing does, as tokens of which no word was made merge with nothing.
  std::vector<std::int32_t> tokenize(std::span<const std::uint8_t> text) const;

 private:
  struct Result {
    std::int32_t rank, merged;
  };

  Result find(std::int32_t left, std::int32_t right) const;
  std::int32_t begin(std::span<const std::uint8_t>& text) const;

  std::unordered_map<std::uint32_t, std::int32_t> units_;  // tokens of characters and bytes, by their bytes
  std::unordered_map<std::uint64_t, Result> results_;
};

}  // namespace minisgl
