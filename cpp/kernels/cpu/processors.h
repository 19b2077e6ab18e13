// The chain of logit processors (kernels/processors.h) on the CPU, over one row of logits [vocab].
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/error.h"
#include "kernels/processors.h"

namespace minisgl {

void apply_bias(std::span<float> logits, std::span<const TokenBias> bias);
void apply_penalties(std::span<float> logits, const Penalties& penalties);
void apply_bans(std::span<float> logits, std::span<const std::int32_t> banned);
void apply_mask(std::span<float> logits, TokenMask mask);

// All of them, in their order. Throws CheckError for a token outside the vocabulary and for a mask of another length.
inline void apply_processors(std::span<float> logits, const LogitProcessors& processors) {
  apply_bias(logits, processors.bias);
  apply_penalties(logits, processors.penalties);
  apply_bans(logits, processors.banned);
  apply_mask(logits, processors.mask);
}

// For a row that they leave without a single number: the lowest token that is neither banned nor masked; where there is
// none, the lowest that the mask allows, else 0.
std::int32_t first_allowed(std::size_t vocab_size, const LogitProcessors& processors);

inline std::size_t checked_token(std::int32_t token, std::span<const float> logits) {
  MINISGL_CHECK(token >= 0 && static_cast<std::size_t>(token) < logits.size(), "token ", token, " of a vocabulary of ",
                logits.size());
  return static_cast<std::size_t>(token);
}

}  // namespace minisgl
