// Log probabilities of a row of logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/query.h"

namespace minisgl {

// log softmax of `logits` [vocab] at `token`, and its `num_top` most likely tokens, most likely first, written to
// `top`. NaN and -inf have the log probability -inf.
float token_logprob(std::span<const float> logits, std::int32_t token, int num_top, std::vector<TokenLogprob>& top);

}  // namespace minisgl
