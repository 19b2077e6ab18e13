// From logits to a token. Works on one row of logits; rows are independent, so the engine may spread them over threads.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace minisgl {

// What shapes the distribution of one request. Ranges are checked where requests enter the engine.
struct SamplingParams {
  float temperature = 1.0f;         // 0 is greedy
  std::int32_t top_k = 0;           // 0 is off
  float top_p = 1.0f;               // 1 is off
  float min_p = 0.0f;               // 0 is off
  float repetition_penalty = 1.0f;  // over prompt and output, as CTRL and transformers define it
  float presence_penalty = 0.0f;    // over output, as OpenAI defines it
  float frequency_penalty = 0.0f;   // over output
  std::uint64_t seed = 0;
  std::vector<std::pair<std::int32_t, float>> logit_bias = {};
};

struct TokenLogprob {
  std::int32_t token;
  float logprob;
};

// Which tokens a request has seen, for the penalties; kept by the engine, one a request that needs it.
struct TokenCounts {
  std::vector<std::uint8_t> in_prompt;   // [vocab] 0 or 1; empty when repetition_penalty is 1
  std::vector<std::uint32_t> in_output;  // [vocab]; empty when no penalty is set
};

// The same, on whichever device samples (Ops::make_seen_tokens).
class SeenTokens {
 public:
  virtual ~SeenTokens() = default;
  virtual void add_prompt(std::span<const std::int32_t> tokens) = 0;
  virtual void add_output(std::span<const std::int32_t> tokens) = 0;  // beside those that are drawn
};

// What is wanted of one row of logits: a token drawn, or the log probability of a given one.
struct LogitQuery {
  static constexpr std::int32_t kSample = -1;
  std::int32_t target = kSample;              // or the token to be scored
  std::int32_t num_top = -1;                  // alternatives reported beside it; -1: no log probabilities
  const SamplingParams* params = nullptr;     // with kSample, as are all below
  SeenTokens* seen = nullptr;                 // null where no penalty is set; a drawn token is added
  std::span<const std::int32_t> banned = {};  // tokens that must not be drawn
  std::uint64_t position = 0;                 // index of the token among those generated
};

struct TokenOutput {
  std::int32_t token;
  float logprob = 0.0f;                // of the model's own distribution, before temperature and penalties
  std::vector<TokenLogprob> top = {};  // most likely first
};

// Samples from `logits` [vocab], which it changes. Order, as vLLM has it: logit_bias, penalties, `banned` set to -inf,
// then greedy or temperature, top_k, top_p, min_p (the last three over the tempered distribution), then one draw.
// The random number is a function of (params.seed, position): counter-based (Philox 4x32-10, Salmon et al. 2011).
// NaN logits lose against everything; ties go to the lower id; at least one token always survives.
// Each filter works on what the one before it left: top_p is a share of the survivors of top_k. A row without a number
// (all NaN or -inf) gives the lowest id that is not banned. Throws CheckError for a token outside the vocabulary.
// `scratch` is reused between calls.
struct SampleCandidate {
  float logit;
  float weight;  // exp((logit - max) / temperature)
  std::int32_t token;
};
struct SampleScratch {
  std::vector<SampleCandidate> candidates;
  std::vector<float> block_max, block_sum;  // [vocab / 64, rounded up]
};
std::int32_t sample(std::span<float> logits, const SamplingParams& params, const TokenCounts& counts,
                    std::span<const std::int32_t> banned, std::uint64_t position, SampleScratch& scratch);

// log softmax of `logits` [vocab] at `token`, and its `num_top` most likely tokens, most likely first, written to
// `top`. NaN and -inf have the log probability -inf.
float token_logprob(std::span<const float> logits, std::int32_t token, int num_top, std::vector<TokenLogprob>& top);

}  // namespace minisgl
