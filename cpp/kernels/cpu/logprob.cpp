// log softmax at one token and the most likely alternatives, in two passes over the row and without memory of its own.
#include "kernels/cpu/logprob.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "kernels/cpu/row_math.h"

namespace minisgl {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t kChunkBlocks = 64;
constexpr std::int64_t kChunk = kChunkBlocks * kLogitBlock;

// `top` is kept sorted; while it is filled, the logprob field holds the logit.
void insert_if_likely(float logit, std::int32_t token, std::size_t num_top, std::vector<TokenLogprob>& top) {
  if (top.size() == num_top) {
    if (!(logit > top.back().logprob)) return;
    top.pop_back();
  }
  const auto place = std::upper_bound(top.begin(), top.end(), logit,
                                      [](float value, const TokenLogprob& entry) { return value > entry.logprob; });
  top.insert(place, {token, logit});
}

// The largest logit, NaN left out; collects the most likely tokens on the way.
float scan(std::span<const float> logits, std::size_t num_top, std::vector<TokenLogprob>& top) {
  float max = -kInfinity;
  float block_max[kChunkBlocks];
  for (std::int64_t chunk = 0; chunk < std::ssize(logits); chunk += kChunk) {
    const std::int64_t size = std::min(kChunk, std::ssize(logits) - chunk);
    logit_block_max(&logits[chunk], size, block_max);
    for (std::int64_t block = 0; block < num_logit_blocks(size); ++block) {
      max = std::max(max, block_max[block]);
      if (num_top == 0 || (top.size() == num_top && !(block_max[block] > top.back().logprob))) continue;
      const std::int64_t first = chunk + block * kLogitBlock;
      const std::int64_t last = std::min(chunk + size, first + kLogitBlock);
      for (std::int64_t i = first; i < last; ++i)
        insert_if_likely(std::isnan(logits[i]) ? -kInfinity : logits[i], static_cast<std::int32_t>(i), num_top, top);
    }
  }
  return max;
}

double sum_of_weights(std::span<const float> logits, float max) {
  double total = 0;
  float block_sum[kChunkBlocks];
  for (std::int64_t chunk = 0; chunk < std::ssize(logits); chunk += kChunk) {
    const std::int64_t size = std::min(kChunk, std::ssize(logits) - chunk);
    logit_weights(&logits[chunk], size, max, 1.0f, nullptr, block_sum);
    for (std::int64_t block = 0; block < num_logit_blocks(size); ++block) total += block_sum[block];
  }
  return total;
}

}  // namespace

float token_logprob(std::span<const float> logits, std::int32_t token, int num_top, std::vector<TokenLogprob>& top) {
  MINISGL_CHECK(token >= 0 && token < std::ssize(logits), "token ", token, " of a vocabulary of ", logits.size());
  top.clear();
  const auto count = static_cast<std::size_t>(std::clamp<std::int64_t>(num_top, 0, std::ssize(logits)));
  const float max = scan(logits, count, top);

  double log_total = 0;
  if (std::isfinite(max)) {
    log_total = std::log(sum_of_weights(logits, max));
  } else if (max == kInfinity) {  // infinite logits share all of the probability
    log_total = std::log(static_cast<double>(std::count(logits.begin(), logits.end(), kInfinity)));
  }
  const auto logprob = [&](float logit) {
    if (std::isnan(logit) || logit == -kInfinity) return -kInfinity;
    const double distance = logit == max ? 0.0 : double{logit} - max;
    return static_cast<float>(distance - log_total);
  };
  for (TokenLogprob& entry : top) entry.logprob = logprob(entry.logprob);
  return logprob(logits[token]);
}

}  // namespace minisgl
