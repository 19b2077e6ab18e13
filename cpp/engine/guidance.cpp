// Grammars make masks on threads of their own; thoughts are followed here. Where a sequence has both, its mask is
// both's.
#include "engine/guidance.h"

#include <utility>

#include "engine/token_mask.h"

namespace minisgl {
namespace {

bool has_grammar(const Request& request) {
  return !request.grammar.empty() && request.num_to_come() > 0;
}

bool has_budget(const Request& request) {
  return request.thought.max_tokens >= 0 && !request.thought.states.empty();
}

}  // namespace

bool Guidance::concerns(const Request& request) {
  return has_grammar(request) || has_budget(request);
}

void Guidance::admit(Request& request, Newcomer newcomer) {
  const SequenceId id = newcomer.sequence.id;
  const SequenceSampling& sampling = newcomer.sampling;
  const bool has_thought = has_budget(request);
  if (has_grammar(request)) {
    (may_await_masks_ ? newcomer.sequence.awaits_masks : newcomer.sequence.needs_token) = true;
  }
  if (has_thought) {
    LimitedThought limited{Thought(std::move(request.thought)), newcomer.sequence.needs_token};
    limited.thought.note(sampling.resumed);
    thoughts_.emplace(id, std::move(limited));
  }
  if (!has_grammar(request)) {
    sequences_.enter(std::move(newcomer));
    return lead_thought(id);
  }
  // Those whose tokens have something said of them draw each.
  const bool takes_forced = request.logprobs < 0 && !has_thought && sampling.params.allowed_token_ids.empty();
  grammars_.begin(id, {.text = std::move(request.grammar),
                       .resumed = sampling.resumed,
                       .allowed = sampling.params.allowed_token_ids,
                       .ends_late = request.ignore_eos,
                       .takes_forced = takes_forced});
  sequences_.keep(std::move(newcomer));
}

void Guidance::note(const StepPlan& plan, const StepTokens& drawn) {
  if (!thoughts_.empty()) note_thoughts(plan, drawn);
  if (!grammars_.empty()) advance_grammars(plan, drawn);
}

void Guidance::end(SequenceId id) {
  if (!grammars_.empty()) grammars_.end(id);
  if (!thoughts_.empty()) thoughts_.erase(id);
}

void Guidance::note_thoughts(const StepPlan& plan, const StepTokens& drawn) {
  for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
    if (drawn.of(i).empty()) continue;
    const auto entry = thoughts_.find(plan.sequences[i].id);
    if (entry == thoughts_.end()) continue;
    entry->second.thought.note(drawn.of(i));
    lead_thought(entry->first);
  }
}

// Has the sequence draw what closes its thought, where that is due. Until shortly before, it runs ahead as others do.
// Where it has a grammar, apply() does that when the next mask is there.
void Guidance::lead_thought(SequenceId id) {
  LimitedThought& limited = thoughts_.at(id);
  const Thought& thought = limited.thought;
  if (!grammars_.contains(id)) {
    scheduler_.need_token(id, limited.needs_token || thought.is_near_end());
    const std::span<const std::int32_t> closing = thought.closing();
    if (!closing.empty()) {
      sequences_.mask(id, mask_of(closing.first(1), vocab_size_));
      limited.has_mask = true;
    } else if (limited.has_mask) {
      sequences_.mask(id, {});
    }
  }
  if (thought.is_over()) thoughts_.erase(id);
}

// No step that is planned from now on computes these sequences before their next masks are there.
void Guidance::advance_grammars(const StepPlan& plan, const StepTokens& drawn) {
  advances_.clear();
  for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
    const SequenceId id = plan.sequences[i].id;
    if (drawn.of(i).empty() || !grammars_.contains(id)) continue;
    scheduler_.hold(id, true);
    advances_.push_back({id, drawn.of(i)});
  }
  if (!advances_.empty()) grammars_.advance(advances_);
}

bool Guidance::take() {
  grammars_.take(results_);
  for (GrammarResult& result : results_) {
    if (grammars_.contains(result.id)) apply(std::move(result));
  }
  const bool came = !results_.empty();
  results_.clear();
  return came;
}

// What the grammar of a live sequence says of its next token.
void Guidance::apply(GrammarResult result) {
  const SequenceId id = result.id;
  if (!result.forced.empty()) {
    scheduler_.withdraw(id);  // what a step in flight would draw is known
    if (!sequences_.give(id, result.forced)) return end(id);
  }
  if (result.is_complete) {
    sequences_.complete(id, grammars_.end_token());
    return end(id);
  }
  if (!result.error.empty()) {
    sequences_.refuse(id, std::move(result.error));
    return end(id);
  }
  if (!sequences_.enter_kept(id)) {
    scheduler_.hold(id, false);
  } else if (thoughts_.contains(id)) {
    lead_thought(id);
  }
  if (thoughts_.contains(id)) add_closing(id, result.mask);
  sequences_.mask(id, result.mask);
}

// Where the thought is to be closed and the grammar's mask allows it, the mask allows nothing else.
void Guidance::add_closing(SequenceId id, std::vector<std::uint32_t>& mask) {
  Thought& thought = thoughts_.at(id).thought;
  const auto may_stand = [&](std::int32_t token) { return mask_allows(mask, token); };
  thought.pass_to(may_stand);
  const std::span<const std::int32_t> closing = thought.closing();
  if (!closing.empty() && may_stand(closing.front())) mask = mask_of(closing.first(1), vocab_size_);
}

}  // namespace minisgl
