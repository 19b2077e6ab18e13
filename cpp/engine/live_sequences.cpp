#include "engine/live_sequences.h"

#include <algorithm>
#include <utility>

namespace minisgl {

void LiveSequences::enter(Newcomer newcomer) {
  const SequenceId id = newcomer.sequence.id;
  publisher_.add(id, newcomer.sampling);
  executor_.add(id, std::move(newcomer.sampling));
  scheduler_.add(std::move(newcomer.sequence));
}

void LiveSequences::keep(Newcomer newcomer) {
  const SequenceId id = newcomer.sequence.id;
  kept_.emplace(id, std::move(newcomer));
}

bool LiveSequences::enter_kept(SequenceId id) {
  auto kept = kept_.extract(id);
  if (!kept) return false;
  enter(std::move(kept.mapped()));
  return true;
}

// With penalties it has no counts on the devices any more: they are made again of its tokens when it goes on.
void LiveSequences::pause(SequenceId id) {
  const SequenceSampling& sampling = executor_.sampling(id);
  if (!uses_penalties(sampling.params)) return;
  const Sequence& sequence = scheduler_.sequence(id);
  std::span<const std::int32_t> output(sequence.tokens);
  if (sequence.is_pending()) output = output.first(output.size() - 1);  // it goes on already, and this step draws it
  output = output.subspan(static_cast<std::size_t>(sampling.prompt_len));
  publisher_.pause(id, output);
  executor_.pause(id, output);
}

void LiveSequences::mask(SequenceId id, std::span<const std::uint32_t> words) {
  publisher_.mask(id, words);
  executor_.mask(id, words);
}

bool LiveSequences::give(SequenceId id, std::span<const std::int32_t> tokens) {
  const Sequence& sequence = scheduler_.sequence(id);
  tokens = tokens.first(std::min(tokens.size(), static_cast<std::size_t>(sequence.max_len - sequence.len())));
  scheduler_.append(id, tokens);
  publisher_.append(id, tokens);
  executor_.append(id, tokens);
  LiveRequests::Collected collected = requests_.append(id, tokens, Clock::now());
  report(collected);
  return collected.ended.empty();
}

std::vector<SequenceId> LiveSequences::collect(const StepPlan& plan, const StepTokens& drawn, StepOutputs& results,
                                               Clock::time_point now) {
  LiveRequests::Collected collected = requests_.collect(plan, drawn, results, now);
  report(collected);
  return std::move(collected.ended);
}

void LiveSequences::abort(SequenceId id) {
  report(requests_.end(id, FinishReason::abort, Clock::now()));
  remove(id);
}

void LiveSequences::complete(SequenceId id, std::int32_t end_token) {
  report(requests_.stop(id, end_token, Clock::now()));
  remove(id);
}

void LiveSequences::refuse(SequenceId id, std::string error) {
  RequestOutput output = requests_.end(id, FinishReason::error, Clock::now());
  output.error_code = ErrorCode::invalid_request;
  output.error = std::move(error);
  report(std::move(output));
  remove(id);
}

LiveSequences::News LiveSequences::take_news() {
  return std::exchange(news_, {});
}

void LiveSequences::report(RequestOutput&& output) {
  if (output.finish != FinishReason::none) news_.ended.push_back(output.id);
  news_.outputs.push_back(std::move(output));
}

void LiveSequences::report(LiveRequests::Collected& collected) {
  for (const SequenceId id : collected.ended) remove(id);
  if (news_.outputs.empty()) news_.outputs.reserve(collected.outputs.size());
  for (RequestOutput& output : collected.outputs) report(std::move(output));
}

// The one way out for a sequence: its pages and its place on the ranks.
void LiveSequences::remove(SequenceId id) {
  if (kept_.erase(id) > 0) return;
  scheduler_.remove(id);
  publisher_.remove(id);
  executor_.remove(id);
}

}  // namespace minisgl
