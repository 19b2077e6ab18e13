// One check a field, each said with its value.
#include "engine/validation.h"

#include <algorithm>
#include <functional>
#include <span>
#include <vector>

#include "core/error.h"
#include "engine/sampling_fields.h"

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

// A field of SamplingParams, checked as its type asks for.
template <typename Number>
void check_value(Findings& findings, const char* field, const Number& value, const Bounds& bounds, std::int64_t) {
  const char* between = bounds.above_low ? " must be above " : " must be between ";
  const char* and_ = bounds.above_low ? " and at most " : " and ";
  findings.require(bounds.contain(static_cast<double>(value)), field, between, bounds.low, and_, bounds.high, ", got ",
                   value);
}

void check_value(Findings& findings, const char* field, const std::vector<TokenBias>& biases, const Bounds& bounds,
                 std::int64_t vocab_size) {
  findings.require(std::ssize(biases) <= vocab_size, field, " has ", biases.size(),
                   " entries, more than the vocabulary of ", vocab_size);
  for (const auto& [token, bias] : biases) {
    if (findings.any()) return;
    check_tokens(findings, field, std::span(&token, 1), vocab_size);
    findings.require(bounds.contain(bias), field, " of token ", token, " must be a finite number, got ", bias);
  }
}

void check_value(Findings& findings, const char* field, const std::vector<std::int32_t>& tokens, const Bounds&,
                 std::int64_t vocab_size) {
  findings.require(std::ssize(tokens) <= vocab_size, field, " has ", tokens.size(),
                   " entries, more than the vocabulary of ", vocab_size);
  if (!findings.any()) check_tokens(findings, field, tokens, vocab_size);
}

void check_value(Findings& findings, const char* field, const std::vector<std::vector<std::int32_t>>& words,
                 const Bounds& bounds, std::int64_t vocab_size) {
  for (const std::vector<std::int32_t>& word : words) {
    findings.require(!word.empty(), field, " has a word without a token");
    check_value(findings, field, word, bounds, vocab_size);
    if (findings.any()) return;
  }
}

void check_sampling(Findings& findings, const SamplingParams& params, std::int64_t vocab_size) {
  for_each_sampling_field(
      [&](const auto& field) { check_value(findings, field.name, params.*field.member, field.bounds, vocab_size); });
}

void check_thought(Findings& findings, const ThoughtBudget& thought, std::int64_t vocab_size) {
  const auto num_states = static_cast<std::int32_t>(thought.states.size());
  const auto num_thoughts = static_cast<std::int32_t>(thought.closings.size());
  findings.require(thought.max_tokens >= -1, "thinking_token_budget must be at least 0, or -1 for none, got ",
                   thought.max_tokens);
  std::vector<bool> has_state(thought.closings.size());
  for (const std::int32_t number : thought.states) {
    findings.require(number >= -1 && number < num_thoughts, "thought_states has the thought ", number, " of ",
                     num_thoughts);
    if (findings.any()) return;
    if (number >= 0) has_state[static_cast<std::size_t>(number)] = true;
  }
  findings.require(std::ranges::all_of(has_state, std::identity()), "thought_closings has a thought without a state");
  for (const auto& [state, token, next] : thought.moves) {
    if (state >= 0 && state < num_states && next >= -1 && next < num_states) continue;
    findings.require(false, "thought_moves leads from state ", state, " to ", next, ", and there are ", num_states);
    break;
  }
  findings.require(std::ranges::is_sorted(thought.moves), "thought_moves must be sorted");
  for (const std::vector<std::int32_t>& closing : thought.closings) {
    findings.require(!closing.empty(), "thought_closings has one without a token");
    if (!findings.any()) check_tokens(findings, "thought_closings", closing, vocab_size);
  }
}

}  // namespace

std::optional<RequestFault> find_fault(const Request& request, const ModelSpec& spec, const EngineConfig& config) {
  Findings findings;
  findings.require(!request.prompt.empty(), "the prompt is empty; it must have at least 1 token");
  findings.require(request.num_resumed >= 0 && request.num_resumed < std::ssize(request.prompt),
                   "num_resumed must be below the prompt's number of tokens, got ", request.num_resumed);
  findings.require(request.max_tokens >= request.num_resumed, "max_tokens must be at least ", request.num_resumed,
                   ", got ", request.max_tokens);
  if (findings.any()) return findings.take();
  findings.require(request.grammar.find('\0') == std::string::npos, "grammar has a character NUL");
  findings.require(request.min_tokens >= 0, "min_tokens must be at least 0, got ", request.min_tokens);
  for (const auto& [field, value] :
       {std::pair("logprobs", request.logprobs), std::pair("prompt_logprobs", request.prompt_logprobs)}) {
    findings.require(value >= -1 && value <= max_logprobs, field, " must be between 0 and ", max_logprobs,
                     ", or -1 for none, got ", value);
  }
  const std::int32_t priority = request.standing.priority;
  findings.require(priority >= -max_priority && priority <= max_priority, "priority must be between ", -max_priority,
                   " and ", max_priority, ", got ", priority);
  if (findings.any()) return findings.take();

  // Before the look at each token: a prompt that is far too long is refused at once.
  const auto prompt_len = static_cast<std::int64_t>(request.prompt.size());
  if (prompt_len > config.max_model_len || request.num_to_come() > config.max_model_len - prompt_len) {
    return RequestFault{ErrorCode::too_long,
                        concat("the prompt has ", prompt_len - request.num_resumed, " tokens and max_tokens is ",
                               request.max_tokens, "; together they may be at most ", config.max_model_len)};
  }
  findings.require(static_cast<std::int64_t>(request.stop_token_ids.size()) <= spec.vocab_size, "stop_token_ids has ",
                   request.stop_token_ids.size(), " entries, more than the vocabulary of ", spec.vocab_size);
  if (findings.any()) return findings.take();
  check_tokens(findings, "prompt", request.prompt, spec.vocab_size);
  check_tokens(findings, "stop_token_ids", request.stop_token_ids, spec.vocab_size);
  check_sampling(findings, request.sampling, spec.vocab_size);
  check_thought(findings, request.thought, spec.vocab_size);
  return findings.take();
}

}  // namespace minisgl
