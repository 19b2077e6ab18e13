// What is asked of a row of logits, and what comes of it: the same for every device.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/processors.h"

namespace minisgl {

// What shapes the distribution of one request. Ranges are checked where requests enter the engine.
struct SamplingParams {
  float temperature = 1.0f;         // 0 is greedy
  std::int32_t top_k = 0;           // 0 and -1 are off
  float top_p = 1.0f;               // 1 is off
  float min_p = 0.0f;               // 0 is off
  float repetition_penalty = 1.0f;  // over prompt and output, as CTRL and transformers define it
  float presence_penalty = 0.0f;    // over output, as OpenAI defines it
  float frequency_penalty = 0.0f;   // over output
  std::uint64_t seed = 0;
  std::vector<std::pair<std::int32_t, float>> logit_bias = {};
  // A word's last token is not drawn where the tokens before it are the latest that were generated.
  std::vector<std::vector<std::int32_t>> bad_words = {};
  std::vector<std::int32_t> allowed_token_ids = {};  // nothing else is drawn; empty: everything may be
};

struct TokenLogprob {
  std::int32_t token;
  float logprob;
};

// Which tokens a request has seen, for its penalties; kept on the device that samples (StepRunner::make_seen_tokens).
class SeenTokens {
 public:
  virtual ~SeenTokens() = default;
  virtual void add_prompt(std::span<const std::int32_t> tokens) = 0;
  virtual void add_output(std::span<const std::int32_t> tokens) = 0;  // beside those that are drawn
};

// What is wanted of one row of logits: a token drawn, or the log probability of a given one.
struct LogitQuery {
  static constexpr std::int32_t kSample = -1;
  std::int32_t target = kSample;           // or the token to be scored
  std::int32_t num_top = -1;               // alternatives reported beside it; -1: no log probabilities
  const SamplingParams* params = nullptr;  // with kSample, as are all below: temperature, top_k, top_p, min_p and seed
  LogitProcessors processors = {};
  std::uint64_t position = 0;  // index of the token among those generated
  bool awaits_mask = false;    // processors.mask has its length alone: a LateMask brings the words
};

// The mask of a step's query that awaits one. Without words nothing is drawn, and token 0 stands in its place.
struct LateMask {
  std::int32_t query;
  TokenMask words;
};

struct TokenOutput {
  std::int32_t token;
  float logprob = 0.0f;                // under the model's own distribution, before temperature and penalties
  std::vector<TokenLogprob> top = {};  // most likely first
};

// What comes of a step.
struct StepOutputs {
  std::vector<TokenOutput> tokens;  // one per query
  // [num_hidden, hidden_size] what the model's head would read of the batch's hidden_rows
  std::vector<float> hidden = {};
};

}  // namespace minisgl
