// One check a field, each said with its value.
#include "engine/validation.h"

#include <cmath>
#include <span>
#include <vector>

#include "core/error.h"

namespace minisgl {
namespace {

// Collects the first fault.
class Findings {
 public:
  template <typename... Parts>
  void require(bool condition, const Parts&... message) {
    if (!condition && !fault_) fault_ = RequestFault{ErrorCode::invalid_request, concat(message...)};
  }
  std::optional<RequestFault> take() { return std::move(fault_); }
  bool any() const { return fault_.has_value(); }

 private:
  std::optional<RequestFault> fault_;
};

void check_tokens(Findings& findings, const char* field, std::span<const std::int32_t> tokens,
                  std::int64_t vocab_size) {
  for (const std::int32_t token : tokens) {
    if (token >= 0 && token < vocab_size) continue;
    findings.require(false, field, " has token id ", token, ", outside the vocabulary of ", vocab_size);
    return;
  }
}

void check_sampling(Findings& findings, const SamplingParams& params, std::int64_t vocab_size) {
  findings.require(params.temperature >= 0 && params.temperature <= max_temperature,
                   "temperature must be between 0 and ", max_temperature, ", got ", params.temperature);
  findings.require(params.top_k >= 0, "top_k must be at least 0, got ", params.top_k);
  findings.require(params.top_p > 0 && params.top_p <= 1, "top_p must be above 0 and at most 1, got ", params.top_p);
  findings.require(params.min_p >= 0 && params.min_p <= 1, "min_p must be between 0 and 1, got ", params.min_p);
  findings.require(std::isfinite(params.repetition_penalty) && params.repetition_penalty > 0,
                   "repetition_penalty must be a finite number above 0, got ", params.repetition_penalty);
  findings.require(std::isfinite(params.presence_penalty), "presence_penalty must be a finite number, got ",
                   params.presence_penalty);
  findings.require(std::isfinite(params.frequency_penalty), "frequency_penalty must be a finite number, got ",
                   params.frequency_penalty);
  findings.require(static_cast<std::int64_t>(params.logit_bias.size()) <= vocab_size, "logit_bias has ",
                   params.logit_bias.size(), " entries, more than the vocabulary of ", vocab_size);
  if (findings.any()) return;
  for (const auto& [token, bias] : params.logit_bias) {
    check_tokens(findings, "logit_bias", std::span(&token, 1), vocab_size);
    findings.require(std::isfinite(bias), "logit_bias of token ", token, " must be a finite number, got ", bias);
    if (findings.any()) return;
  }
}

}  // namespace

std::optional<RequestFault> find_fault(const Request& request, const ModelSpec& spec, const EngineConfig& config) {
  Findings findings;
  findings.require(!request.prompt.empty(), "the prompt is empty; it must have at least 1 token");
  findings.require(request.max_tokens >= 0, "max_tokens must be at least 0, got ", request.max_tokens);
  findings.require(request.num_resumed >= 0 && request.num_resumed < std::ssize(request.prompt),
                   "num_resumed must be below the prompt's number of tokens, got ", request.num_resumed);
  if (findings.any()) return findings.take();
  findings.require(request.min_tokens >= 0, "min_tokens must be at least 0, got ", request.min_tokens);
  for (const auto& [field, value] :
       {std::pair("logprobs", request.logprobs), std::pair("prompt_logprobs", request.prompt_logprobs)}) {
    findings.require(value >= -1 && value <= max_logprobs, field, " must be between 0 and ", max_logprobs,
                     ", or -1 for none, got ", value);
  }
  if (findings.any()) return findings.take();

  // Before the look at each token: a prompt that is far too long is refused at once.
  const auto prompt_len = static_cast<std::int64_t>(request.prompt.size());
  if (prompt_len > config.max_model_len || request.max_tokens > config.max_model_len - prompt_len) {
    return RequestFault{ErrorCode::too_long,
                        concat("the prompt has ", prompt_len, " tokens and max_tokens is ", request.max_tokens,
                               "; together they may be at most ", config.max_model_len)};
  }
  findings.require(static_cast<std::int64_t>(request.stop_token_ids.size()) <= spec.vocab_size, "stop_token_ids has ",
                   request.stop_token_ids.size(), " entries, more than the vocabulary of ", spec.vocab_size);
  if (findings.any()) return findings.take();
  check_tokens(findings, "prompt", request.prompt, spec.vocab_size);
  check_tokens(findings, "stop_token_ids", request.stop_token_ids, spec.vocab_size);
  check_sampling(findings, request.sampling, spec.vocab_size);
  return findings.take();
}

}  // namespace minisgl
