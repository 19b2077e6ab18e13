#include "engine/newcomer.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "engine/executor.h"

namespace minisgl {

std::vector<std::int32_t> stop_tokens_of(const Request& request, const ModelSpec& spec) {
  std::vector<std::int32_t> tokens = request.stop_token_ids;
  if (!request.ignore_eos) tokens.insert(tokens.end(), spec.eos_token_ids.begin(), spec.eos_token_ids.end());
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  return tokens;
}

Newcomer make_newcomer(SequenceId id, Request& request, std::vector<std::int32_t> stop_tokens,
                       std::chrono::steady_clock::time_point arrived) {
  const auto prompt_end = request.prompt.end() - request.num_resumed;
  const bool needs_token = needs_latest_token(request.sampling);
  const bool has_counts = uses_penalties(request.sampling);
  const std::int64_t num_hidden = request.pooling.num_rows(std::ssize(request.prompt));
  const bool counts_prompt = request.sampling.repetition_penalty != 1.0f;
  SequenceSampling sampling{.params = std::move(request.sampling),
                            .prompt_len = prompt_end - request.prompt.begin(),
                            .prompt = {counts_prompt ? request.prompt.begin() : prompt_end, prompt_end},
                            .resumed = {prompt_end, request.prompt.end()},
                            .min_tokens = request.min_tokens,
                            .stop_tokens = std::move(stop_tokens),
                            .logprobs = request.logprobs,
                            .prompt_logprobs = request.prompt_logprobs};
  NewSequence sequence{.id = id,
                       .prompt = std::move(request.prompt),
                       .max_tokens = request.num_to_come(),
                       .score_prompt = request.prompt_logprobs >= 0,
                       .needs_token = needs_token,
                       .has_counts = has_counts,
                       .num_hidden = num_hidden,
                       .space = {.adapter = request.adapter, .salt = request.prefix_salt},
                       .standing = request.standing,
                       .arrived = arrived};
  return {std::move(sampling), std::move(sequence)};
}

}  // namespace minisgl
