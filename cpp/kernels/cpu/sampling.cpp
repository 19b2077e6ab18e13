// Sampling without sorting the vocabulary. Every filter keeps a prefix of the order "higher logit first, then lower
// id", so all of them together are one cut (logit, id); the draw then walks the survivors in id order.
#include "kernels/cpu/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "kernels/cpu/processors.h"
#include "kernels/cpu/row_math.h"
#include "kernels/philox.h"

namespace minisgl {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The last survivor in the order of likelihood.
struct Cut {
  float logit = -kInfinity;
  std::int32_t token = std::numeric_limits<std::int32_t>::max();

  bool keeps(float value, std::int32_t id) const { return value > logit || (value == logit && id <= token); }
  bool keeps_all() const { return logit == -kInfinity; }
  bool tighter_than(const Cut& other) const {
    return logit > other.logit || (logit == other.logit && token < other.token);
  }
};

bool more_likely(const SampleCandidate& a, const SampleCandidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

// One row on its way to a token.
class RowSampler {
 public:
  RowSampler(std::span<float> logits, SampleScratch& scratch)
      : logits_(logits), scratch_(scratch), num_blocks_(num_logit_blocks(std::ssize(logits))) {
    scratch_.block_max.resize(static_cast<std::size_t>(num_blocks_));
    scratch_.block_sum.resize(static_cast<std::size_t>(num_blocks_));
    find_max();
    if (max_ == kInfinity) {  // infinite logits share all of the probability
      for (float& logit : logits_) logit = logit == kInfinity ? 0.0f : -kInfinity;
      find_max();
    }
  }

  float max() const { return max_; }

  std::int32_t argmax() const {
    for (std::int64_t block = 0; block < num_blocks_; ++block) {
      if (scratch_.block_max[block] != max_) continue;
      for (std::int64_t i = begin(block); i < end(block); ++i)
        if (logits_[i] == max_) return static_cast<std::int32_t>(i);
    }
    return 0;
  }

  std::int32_t sample(const SamplingParams& params, double uniform) {
    scale_ = std::min(1.0f / params.temperature, std::numeric_limits<float>::max());
    const bool top_k = params.top_k > 0 && params.top_k < std::ssize(logits_);
    if (top_k) cut_to_top_k(params.top_k);
    if (params.top_p < 1.0f) cut_to_top_p(params.top_p, top_k);
    if (params.min_p > 0.0f) cut_to_min_p(params.min_p);
    return draw(uniform);
  }

 private:
  std::int64_t begin(std::int64_t block) const { return block * kLogitBlock; }
  std::int64_t end(std::int64_t block) const { return std::min(std::ssize(logits_), begin(block) + kLogitBlock); }

  void find_max() {
    logit_block_max(logits_.data(), std::ssize(logits_), scratch_.block_max.data());
    max_ = *std::max_element(scratch_.block_max.begin(), scratch_.block_max.end());
  }

  // All tokens of at least `threshold`, with their weights, in id order.
  void gather(double threshold) {
    scratch_.candidates.clear();
    for (std::int64_t block = 0; block < num_blocks_; ++block) {
      if (!(scratch_.block_max[block] >= threshold)) continue;
      float weights[kLogitBlock], sum;
      logit_weights(&logits_[begin(block)], end(block) - begin(block), max_, scale_, weights, &sum);
      for (std::int64_t i = begin(block); i < end(block); ++i)
        if (logits_[i] >= threshold)
          scratch_.candidates.push_back({logits_[i], weights[i - begin(block)], static_cast<std::int32_t>(i)});
    }
  }

  void tighten(const Cut& cut) {
    if (cut.tighter_than(cut_)) cut_ = cut;
  }

  // The k-th largest block maximum bounds the k-th largest logit from below, which leaves few candidates.
  void cut_to_top_k(std::int64_t k) {
    float threshold = -kInfinity;
    if (k < num_blocks_) {
      auto& maxima = scratch_.block_sum;  // not in use yet
      maxima.assign(scratch_.block_max.begin(), scratch_.block_max.end());
      std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<>());
      threshold = maxima[k - 1];
    }
    gather(threshold);
    auto& candidates = scratch_.candidates;
    if (std::ssize(candidates) < k) return;  // the rest of the row is NaN
    std::nth_element(candidates.begin(), candidates.begin() + (k - 1), candidates.end(), more_likely);
    candidates.resize(static_cast<std::size_t>(k));
    tighten({candidates.back().logit, candidates.back().token});
  }

  // Candidates hold the survivors of top_k, or nothing yet.
  void cut_to_top_p(float top_p, bool have_candidates) {
    double total = 0;
    if (have_candidates) {
      for (const SampleCandidate& candidate : scratch_.candidates) total += candidate.weight;
    } else {
      logit_weights(logits_.data(), std::ssize(logits_), max_, scale_, nullptr, scratch_.block_sum.data());
      for (const float sum : scratch_.block_sum) total += sum;
      // Tokens below the weight (1 - top_p) * total / vocab sum to less than 1 - top_p: none of them is needed.
      // The margin covers the rounding of the exponential.
      const double least = (1.0 - top_p) * total / static_cast<double>(logits_.size());
      gather(max_ + (std::log(least) - 1e-3) / scale_);
    }
    // top_p is a rounded float: 0.1f of ten equal tokens is one token.
    const double target = double{top_p} * (1.0 - 1e-7) * total;
    const SampleCandidate& last = find_nucleus(target);
    tighten({last.logit, last.token});
  }

  // The last of the fewest most likely candidates whose weights reach `target`: quickselect by weight.
  const SampleCandidate& find_nucleus(double target) {
    auto first = scratch_.candidates.begin();
    auto last = scratch_.candidates.end();
    while (last - first > 32) {
      const auto middle = first + (last - first) / 2;
      std::nth_element(first, middle, last, more_likely);
      double weight = 0;
      for (auto it = first; it != middle; ++it) weight += it->weight;
      if (weight >= target) {
        last = middle;
      } else {
        target -= weight;
        first = middle;
      }
    }
    std::sort(first, last, more_likely);
    for (auto it = first; it != last; ++it) {
      target -= it->weight;
      if (target <= 0) return *it;
    }
    return *(last - 1);
  }

  void cut_to_min_p(float min_p) {
    const double logit = max_ + std::log(double{min_p}) / scale_;
    tighten({std::min(static_cast<float>(logit), max_), std::numeric_limits<std::int32_t>::max()});
  }

  // Weights of a block's survivors, 0 for the others; returns their sum.
  float block_weights(std::int64_t block, float* weights) const {
    const std::int64_t size = end(block) - begin(block);
    float sum;
    logit_weights(&logits_[begin(block)], size, max_, scale_, weights, &sum);
    if (cut_.keeps_all()) return sum;
    sum = 0;
    for (std::int64_t i = 0; i < size; ++i) {
      if (!cut_.keeps(logits_[begin(block) + i], static_cast<std::int32_t>(begin(block) + i))) weights[i] = 0;
      sum += weights[i];
    }
    return sum;
  }

  std::int32_t draw(double uniform) {
    float weights[kLogitBlock];
    auto& sums = scratch_.block_sum;
    if (cut_.keeps_all()) {
      logit_weights(logits_.data(), std::ssize(logits_), max_, scale_, nullptr, sums.data());
    } else {
      for (std::int64_t block = 0; block < num_blocks_; ++block)
        sums[block] = scratch_.block_max[block] >= cut_.logit ? block_weights(block, weights) : 0.0f;
    }
    double total = 0;
    for (const float sum : sums) total += sum;

    double left = uniform * total;
    std::int64_t chosen = 0;
    for (std::int64_t block = 0; block < num_blocks_; ++block) {
      if (sums[block] == 0) continue;
      chosen = block;  // rounding may leave the walk past the end: then the last block with weight has it
      if (left < sums[block]) break;
      left -= sums[block];
    }
    block_weights(chosen, weights);
    std::int64_t token = begin(chosen);
    for (std::int64_t i = 0; i < end(chosen) - begin(chosen); ++i) {
      if (weights[i] == 0) continue;
      token = begin(chosen) + i;
      if (left < weights[i]) break;
      left -= weights[i];
    }
    return static_cast<std::int32_t>(token);
  }

  std::span<float> logits_;
  SampleScratch& scratch_;
  std::int64_t num_blocks_;
  float max_ = -kInfinity;
  float scale_ = 1.0f;  // 1 / temperature
  Cut cut_;
};

}  // namespace

std::int32_t sample(std::span<float> logits, const SamplingParams& params, const LogitProcessors& processors,
                    std::uint64_t position, SampleScratch& scratch) {
  MINISGL_CHECK(!logits.empty(), "no logits");
  apply_processors(logits, processors);
  RowSampler row(logits, scratch);
  if (row.max() == -kInfinity) return first_allowed(logits.size(), processors);
  if (params.temperature == 0.0f) return row.argmax();
  return row.sample(params, philox_uniform(params.seed, position));
}

}  // namespace minisgl
