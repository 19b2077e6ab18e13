// Sampling as its definition reads: sort everything, filter, renormalise, walk the distribution. In double.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "kernels/cpu/seen_tokens.h"
#include "kernels/query.h"

namespace minisgl::reference {

inline std::vector<double> adjusted_logits(std::span<const float> logits, const SamplingParams& params,
                                           const TokenCounts& counts, std::span<const std::int32_t> banned,
                                           std::span<const std::uint32_t> mask = {}) {
  std::vector<double> out(logits.begin(), logits.end());
  for (const auto& [token, bias] : params.logit_bias) out[token] += bias;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::uint32_t count = counts.in_output.empty() ? 0 : counts.in_output[i];
    const bool seen = count > 0 || (!counts.in_prompt.empty() && counts.in_prompt[i] != 0);
    if (seen) out[i] = out[i] > 0 ? out[i] / params.repetition_penalty : out[i] * params.repetition_penalty;
    out[i] -= params.frequency_penalty * count;
    if (count > 0) out[i] -= params.presence_penalty;
  }
  for (const std::int32_t token : banned) out[token] = -std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < out.size() && !mask.empty(); ++i) {
    const bool allowed = (mask[i / 32] >> (i % 32)) % 2 == 1;
    if (!allowed) out[i] = -std::numeric_limits<double>::infinity();
  }
  return out;
}

// Probability of each token [vocab]; finite logits (or -inf), temperature above 0.
inline std::vector<double> distribution(std::span<const double> logits, const SamplingParams& params) {
  const auto vocab = static_cast<std::int64_t>(logits.size());
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  std::vector<double> weights;
  for (const std::int32_t token : order)
    weights.push_back(std::exp((logits[token] - logits[order[0]]) / params.temperature));

  std::int64_t kept = params.top_k > 0 ? std::min<std::int64_t>(params.top_k, vocab) : vocab;
  if (params.top_p < 1.0f) {
    const double total = std::accumulate(weights.begin(), weights.begin() + kept, 0.0);
    double sum = 0;
    std::int64_t needed = 0;
    while (needed < kept && sum < params.top_p * (1 - 1e-7) * total) sum += weights[needed++];
    kept = needed;
  }
  while (kept > 1 && weights[kept - 1] < params.min_p * (1 - 1e-7)) --kept;

  const double total = std::accumulate(weights.begin(), weights.begin() + kept, 0.0);
  std::vector<double> probability(logits.size(), 0.0);
  for (std::int64_t i = 0; i < kept; ++i) probability[order[i]] = weights[i] / total;
  return probability;
}

}  // namespace minisgl::reference
