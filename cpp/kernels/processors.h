// What a row of logits goes through before the sampler sees it: a chain of named parts in one fixed order. A sequence
// brings the parts that it uses; a part that is empty costs nothing. Each part is a file for the CPU
// (cpu/processors/) and one for the GPU (cuda/processors/).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace minisgl {

class SeenTokens;

using TokenBias = std::pair<std::int32_t, float>;

// What tokens that `seen` has counted pay. `repetition`, over prompt and output, divides a positive logit and
// multiplies another; `presence` and, once per occurrence, `frequency` are subtracted for tokens of the output.
struct Penalties {
  float repetition = 1.0f;  // 1 is off
  float presence = 0.0f;    // 0 is off, as for the next
  float frequency = 0.0f;
  SeenTokens* seen = nullptr;  // null: no penalty. A drawn token is added
};

// One bit per token, in words of 32: token t may be drawn if bit t % 32 of word t / 32 is set.
using TokenMask = std::span<const std::uint32_t>;
constexpr std::int64_t mask_words(std::int64_t vocab_size) {
  return (vocab_size + 31) / 32;
}
// Tokens past the end of a mask are not allowed; an empty mask allows all.
constexpr bool mask_allows(TokenMask mask, std::int32_t token) {
  if (mask.empty()) return true;
  const auto word = static_cast<std::size_t>(token) / 32;
  return word < mask.size() && (mask[word] >> (static_cast<unsigned>(token) % 32) & 1) != 0;
}

// The parts, in the order in which they are applied.
struct LogitProcessors {
  std::span<const TokenBias> bias = {};       // added to a token's logit; a token may stand there several times
  Penalties penalties = {};                   // applied to what bias left
  std::span<const std::int32_t> banned = {};  // tokens whose logit becomes -inf
  TokenMask mask = {};                        // [mask_words(vocab)]: the logits of all other tokens become -inf
};

}  // namespace minisgl
