// Writing frames is copying.
#include <cstring>
#include <type_traits>

#include "engine/plan_codec.h"
#include "engine/plan_wire.h"
#include "engine/sampling_fields.h"

namespace minisgl {
namespace {

using namespace plan_wire;

WireSequence to_wire(const SequenceStep& step) {
  return {.id_low = static_cast<std::uint32_t>(step.id),
          .id_high = static_cast<std::uint32_t>(step.id >> 32),
          .num_rows = step.num_rows,
          .start_position = step.start_position,
          .num_kept_pages = step.num_kept_pages,
          .num_new_pages = step.num_new_pages,
          .num_draws = step.num_draws};
}

// Sequences with another value than 0.
std::vector<WireField> fields_of(const StepPlan& plan, std::int32_t SequenceStep::* member) {
  std::vector<WireField> fields;
  for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
    const std::int32_t value = plan.sequences[i].*member;
    if (value != 0) fields.push_back({static_cast<std::int32_t>(i), value});
  }
  return fields;
}

std::vector<WireScore> scores_of(const StepPlan& plan) {
  std::vector<WireScore> scores;
  for (std::size_t i = 0; i < plan.targets.size(); ++i) {
    if (plan.targets[i].token != LogitTarget::kSample) scores.push_back({plan.logit_rows[i], plan.targets[i].token});
  }
  return scores;
}

}  // namespace

template <typename T>
void PlanEncoder::put(const T& value) {
  static_assert(std::is_arithmetic_v<T> || std::has_unique_object_representations_v<T>);
  const auto bytes = std::as_bytes(std::span(&value, 1));
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
}

void PlanEncoder::put(const std::vector<TokenBias>& biases) {
  put(static_cast<std::uint32_t>(biases.size()));
  for (const auto& [token, bias] : biases) {
    put(token);
    put(bias);
  }
}

void PlanEncoder::put(const std::vector<std::int32_t>& tokens) {
  put_list(std::span(tokens));
}

void PlanEncoder::put(const std::vector<std::vector<std::int32_t>>& words) {
  put(static_cast<std::uint32_t>(words.size()));
  for (const std::vector<std::int32_t>& word : words) put(word);
}

template <typename T>
void PlanEncoder::put_list(std::span<const T> values) {
  put(static_cast<std::uint32_t>(values.size()));
  const auto bytes = std::as_bytes(values);
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
}

// A message's first byte; before the first message of a frame, its header.
void PlanEncoder::begin(std::uint8_t kind) {
  if (bytes_.empty()) put(FrameHeader());
  put(kind);
}

void PlanEncoder::add(SequenceId id, SequenceSampling sampling) {
  begin(static_cast<std::uint8_t>(Kind::add));
  put(id);
  for_each_sampling_field([&](const auto& field) { put(sampling.params.*field.member); });
  put(sampling.prompt_len);
  put_list(std::span<const std::int32_t>(sampling.prompt));
  put_list(std::span<const std::int32_t>(sampling.resumed));
  put(sampling.min_tokens);
  put_list(std::span<const std::int32_t>(sampling.stop_tokens));
  put(sampling.logprobs);
  put(sampling.prompt_logprobs);
}

void PlanEncoder::remove(SequenceId id) {
  begin(static_cast<std::uint8_t>(Kind::remove));
  put(id);
}

void PlanEncoder::append(SequenceId id, std::span<const std::int32_t> tokens) {
  put_tokens(static_cast<std::uint8_t>(Kind::append), id, tokens);
}

void PlanEncoder::mask(SequenceId id, std::span<const std::uint32_t> words) {
  begin(static_cast<std::uint8_t>(Kind::mask));
  put(id);
  put_list(words);
}

void PlanEncoder::pause(SequenceId id, std::span<const std::int32_t> output) {
  put_tokens(static_cast<std::uint8_t>(Kind::pause), id, output);
}

void PlanEncoder::put_tokens(std::uint8_t kind, SequenceId id, std::span<const std::int32_t> tokens) {
  begin(kind);
  put(id);
  put_list(tokens);
}

void PlanEncoder::step(const StepPlan& plan) {
  begin(static_cast<std::uint8_t>(Kind::step));
  put_list(std::span<const std::int32_t>(plan.tokens));
  put(static_cast<std::uint32_t>(plan.sequences.size()));
  std::int64_t num_draws = 0;
  bool has_adapters = false, awaits_masks = false;
  const std::size_t begin = bytes_.size();
  bytes_.resize(begin + plan.sequences.size() * sizeof(WireSequence));
  std::byte* at = bytes_.data() + begin;
  for (const SequenceStep& step : plan.sequences) {
    const WireSequence wire = to_wire(step);
    std::memcpy(at, &wire, sizeof wire);
    at += sizeof wire;
    num_draws += step.num_draws;
    has_adapters = has_adapters || step.adapter != 0;
    awaits_masks = awaits_masks || step.awaits_mask != 0;
  }
  put_list(std::span<const PageId>(plan.new_pages));
  const bool has_scores = num_draws < std::ssize(plan.targets), has_hidden = !plan.hidden_rows.empty();
  put(static_cast<std::uint8_t>((has_scores ? kScores : 0) | (has_hidden ? kHidden : 0) |
                                (has_adapters ? kAdapters : 0) | (plan.copies.empty() ? 0 : kCopies) |
                                (plan.copies_before == 0 ? 0 : kCopiesBefore) | (awaits_masks ? kAwaitedMasks : 0)));
  if (has_scores) put_list(std::span<const WireScore>(scores_of(plan)));
  if (has_hidden) put_list(std::span<const WireField>(fields_of(plan, &SequenceStep::num_hidden)));
  if (has_adapters) put_list(std::span<const WireField>(fields_of(plan, &SequenceStep::adapter)));
  if (!plan.copies.empty()) put_list(std::span<const PagePair>(plan.copies));
  if (plan.copies_before > 0) put(plan.copies_before);
  if (awaits_masks) put_list(std::span<const WireField>(fields_of(plan, &SequenceStep::awaits_mask)));
}

void PlanEncoder::draw(std::span<const SequenceId> withdrawn) {
  begin(static_cast<std::uint8_t>(Kind::draw));
  put_list(withdrawn);
}

void PlanEncoder::copy(const TierCopies& copies, std::uint32_t num_in_flight) {
  begin(static_cast<std::uint8_t>(Kind::copy));
  put(copies.number);
  put(num_in_flight);
  put(static_cast<std::uint8_t>(copies.to_host));
  put_list(std::span<const PagePair>(copies.pages));
}

void PlanEncoder::shut_down() {
  begin(static_cast<std::uint8_t>(Kind::shut_down));
}

}  // namespace minisgl
