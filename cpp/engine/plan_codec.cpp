// Writing is copying; reading checks every length, and every index before anybody uses it.
#include "engine/plan_codec.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/byte_reader.h"
#include "core/error.h"

namespace minisgl {
namespace {

enum class Kind : std::uint8_t { add = 1, remove, step, shut_down };

// Field by field, so that no padding travels.
template <typename Visitor, typename Params>
void visit_params(Params& params, Visitor&& visit) {
  visit(params.temperature);
  visit(params.top_k);
  visit(params.top_p);
  visit(params.min_p);
  visit(params.repetition_penalty);
  visit(params.presence_penalty);
  visit(params.frequency_penalty);
  visit(params.seed);
}

// A SequenceStep. Where its rows and its new pages begin is the sum of those before it, and need not be said.
struct WireSequence {
  std::uint32_t id_low, id_high;
  std::int32_t num_rows, start_position, num_kept_pages, num_new_pages;
  std::uint32_t samples;
};
static_assert(std::has_unique_object_representations_v<WireSequence> &&
              std::has_unique_object_representations_v<LogitTarget>);

WireSequence to_wire(const SequenceStep& step) {
  return {.id_low = static_cast<std::uint32_t>(step.id),
          .id_high = static_cast<std::uint32_t>(step.id >> 32),
          .num_rows = step.num_rows,
          .start_position = step.start_position,
          .num_kept_pages = step.num_kept_pages,
          .num_new_pages = step.num_new_pages,
          .samples = step.samples};
}

class Fields {
 public:
  explicit Fields(std::span<const std::byte> frame) : reader_(frame, "plan") {}

  bool done() const { return reader_.remaining() == 0; }
  std::size_t position() const { return reader_.position(); }

  template <typename T>
  void read(T& value, std::string_view what) {
    static_assert(std::is_arithmetic_v<T> || std::has_unique_object_representations_v<T>);
    value = reader_.read<T>(what);
  }
  template <typename T>
  T get(std::string_view what) {
    T value;
    read(value, what);
    return value;
  }
  // A list's length, of elements that take at least so many bytes each.
  std::size_t get_length(std::size_t element_bytes, std::string_view what) {
    const auto length = get<std::uint32_t>(what);
    if (length > reader_.remaining() / element_bytes) refuse(what, length);
    return length;
  }
  template <typename T>
  void read_list(std::vector<T>& values, std::string_view what) {
    static_assert(std::has_unique_object_representations_v<T>);
    const std::size_t length = get_length(sizeof(T), what);
    const std::span<const std::byte> bytes = reader_.take(length * sizeof(T), what);
    values.resize(length);
    if (length > 0) std::memcpy(values.data(), bytes.data(), bytes.size());
  }

  template <typename T>
  [[noreturn]] void refuse(std::string_view what, const T& value) const {
    throw InputError(concat("a plan is damaged: ", what, " is ", value, " before byte ", position()));
  }

 private:
  ByteReader reader_;
};

void require(bool good, std::string_view what, std::int64_t value) {
  if (!good) throw InputError(concat("a plan is damaged: ", what, " ", value, " is out of range"));
}

SequenceSampling read_sampling(Fields& fields) {
  SequenceSampling sampling;
  visit_params(sampling.params, [&](auto& value) { fields.read(value, "a sampling parameter"); });
  sampling.params.logit_bias.resize(fields.get_length(8, "logit_bias"));
  for (auto& [token, bias] : sampling.params.logit_bias) {
    fields.read(token, "logit_bias");
    fields.read(bias, "logit_bias");
  }
  fields.read(sampling.prompt_len, "prompt_len");
  fields.read_list(sampling.prompt, "prompt");
  fields.read_list(sampling.resumed, "resumed");
  fields.read(sampling.min_tokens, "min_tokens");
  fields.read_list(sampling.stop_tokens, "stop_tokens");
  fields.read(sampling.logprobs, "logprobs");
  fields.read(sampling.prompt_logprobs, "prompt_logprobs");
  return sampling;
}

void read_plan(Fields& fields, StepPlan& plan) {
  plan.clear();
  fields.read_list(plan.tokens, "tokens");
  plan.sequences.resize(fields.get_length(sizeof(WireSequence), "sequences"));
  std::int64_t row = 0, new_page = 0;
  for (SequenceStep& step : plan.sequences) {
    const auto wire = fields.get<WireSequence>("a sequence");
    step = {.id = wire.id_low | SequenceId{wire.id_high} << 32,
            .first_row = static_cast<std::int32_t>(row),
            .num_rows = wire.num_rows,
            .start_position = wire.start_position,
            .num_kept_pages = wire.num_kept_pages,
            .first_new_page = static_cast<std::int32_t>(new_page),
            .num_new_pages = wire.num_new_pages,
            .samples = wire.samples != 0};
    require(wire.num_rows >= 1, "num_rows", wire.num_rows);
    row += wire.num_rows;
    new_page += wire.num_new_pages;
  }
  fields.read_list(plan.new_pages, "new_pages");
  fields.read_list(plan.logit_rows, "logit_rows");
  fields.read_list(plan.targets, "targets");
  require(row == plan.num_rows(), "number of rows", plan.num_rows());
  require(new_page == std::ssize(plan.new_pages), "number of new pages", std::ssize(plan.new_pages));
  require(plan.targets.size() == plan.logit_rows.size(), "number of targets", std::ssize(plan.targets));
}

}  // namespace

template <typename T>
void PlanEncoder::put(const T& value) {
  static_assert(std::is_arithmetic_v<T> || std::has_unique_object_representations_v<T>);
  const auto bytes = std::as_bytes(std::span(&value, 1));
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
}

template <typename T>
void PlanEncoder::put_list(const std::vector<T>& values) {
  put(static_cast<std::uint32_t>(values.size()));
  const auto bytes = std::as_bytes(std::span(values));
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
}

void PlanEncoder::add(SequenceId id, SequenceSampling sampling) {
  put(static_cast<std::uint8_t>(Kind::add));
  put(id);
  visit_params(sampling.params, [&](const auto& value) { put(value); });
  put(static_cast<std::uint32_t>(sampling.params.logit_bias.size()));
  for (const auto& [token, bias] : sampling.params.logit_bias) {
    put(token);
    put(bias);
  }
  put(sampling.prompt_len);
  put_list(sampling.prompt);
  put_list(sampling.resumed);
  put(sampling.min_tokens);
  put_list(sampling.stop_tokens);
  put(sampling.logprobs);
  put(sampling.prompt_logprobs);
}

void PlanEncoder::remove(SequenceId id) {
  put(static_cast<std::uint8_t>(Kind::remove));
  put(id);
}

void PlanEncoder::step(const StepPlan& plan) {
  put(static_cast<std::uint8_t>(Kind::step));
  put_list(plan.tokens);
  put(static_cast<std::uint32_t>(plan.sequences.size()));
  for (const SequenceStep& step : plan.sequences) put(to_wire(step));
  put_list(plan.new_pages);
  put_list(plan.logit_rows);
  put_list(plan.targets);
}

void PlanEncoder::shut_down() {
  put(static_cast<std::uint8_t>(Kind::shut_down));
}

void PlanDecoder::decode(std::span<const std::byte> frame, PlanHandler& handler) {
  Fields fields(frame);
  while (!fields.done()) {
    const auto kind = fields.get<std::uint8_t>("a message");
    switch (static_cast<Kind>(kind)) {
      case Kind::add: {
        const auto id = fields.get<SequenceId>("an id");
        SequenceSampling sampling = read_sampling(fields);
        check(sampling);
        handler.add(id, std::move(sampling));
        break;
      }
      case Kind::remove: handler.remove(fields.get<SequenceId>("an id")); break;
      case Kind::step:
        read_plan(fields, plan_);
        check(plan_);
        if (limits_.runs_ahead) num_drawn_ = std::ssize(plan_.targets);
        handler.step(plan_);
        break;
      case Kind::shut_down: handler.shut_down(); break;
      default: fields.refuse("a message's kind", static_cast<int>(kind));
    }
  }
}

void PlanDecoder::check(const SequenceSampling& sampling) const {
  const auto check_token = [&](std::int32_t token) {
    require(token >= 0 && token < limits_.vocab_size, "token", token);
  };
  require(sampling.prompt_len >= 1 && sampling.prompt_len <= limits_.max_model_len, "prompt_len", sampling.prompt_len);
  require(sampling.min_tokens >= 0, "min_tokens", sampling.min_tokens);
  require(sampling.prompt.empty() || std::ssize(sampling.prompt) == sampling.prompt_len, "number of prompt tokens",
          std::ssize(sampling.prompt));
  for (const std::int32_t token : sampling.prompt) check_token(token);
  for (const std::int32_t token : sampling.resumed) check_token(token);
  for (const std::int32_t token : sampling.stop_tokens) check_token(token);
  for (const auto& [token, bias] : sampling.params.logit_bias) check_token(token);
  for (const std::int32_t count : {sampling.logprobs, sampling.prompt_logprobs}) {
    require(count >= -1 && count <= limits_.vocab_size, "number of log probabilities", count);
  }
}

// Positions and pages within the cache, targets within the plan, each sequence once; a token that is still to be drawn
// can only be a sequence's last.
void PlanDecoder::check(const StepPlan& plan) {
  require(plan.num_rows() <= limits_.max_batch_tokens, "number of rows", plan.num_rows());
  ids_.clear();
  for (const SequenceStep& step : plan.sequences) ids_.push_back(step.id);
  if (!std::ranges::is_sorted(ids_)) std::ranges::sort(ids_);  // they mostly are
  if (const auto twice = std::ranges::adjacent_find(ids_); twice != ids_.end()) {
    throw InputError(concat("a plan is damaged: it has sequence ", *twice, " twice"));
  }
  for (const SequenceStep& step : plan.sequences) {
    for (std::int64_t row = step.first_row; row + 1 < step.first_row + step.num_rows; ++row) {
      require(plan.tokens[static_cast<std::size_t>(row)] >= 0, "token", plan.tokens[static_cast<std::size_t>(row)]);
    }
    const std::int64_t end = std::int64_t{step.start_position} + step.num_rows;
    const std::int64_t num_pages = std::int64_t{step.num_kept_pages} + step.num_new_pages;
    require(step.start_position >= 0 && end <= limits_.max_model_len, "start_position", step.start_position);
    require(step.num_kept_pages >= 0 && step.num_new_pages >= 0 && num_pages <= limits_.num_pages &&
                end <= num_pages * limits_.page_size,
            "num_new_pages", step.num_new_pages);
  }
  for (const PageId page : plan.new_pages) require(page >= 0 && page < limits_.num_pages, "page", page);
  for (const std::int32_t token : plan.tokens) {
    require(token >= -num_drawn_ && token < limits_.vocab_size, "token", token);
  }
  std::int64_t last = -1;
  for (std::size_t i = 0; i < plan.targets.size(); ++i) {
    const LogitTarget& target = plan.targets[i];
    require(plan.logit_rows[i] > last && plan.logit_rows[i] < plan.num_rows(), "logit row", plan.logit_rows[i]);
    last = plan.logit_rows[i];
    require(target.sequence >= 0 && target.sequence < std::ssize(plan.sequences), "target", target.sequence);
    const SequenceStep& step = plan.sequences[static_cast<std::size_t>(target.sequence)];
    require(last >= step.first_row && last - step.first_row < step.num_rows, "target", target.sequence);
    require(target.token >= LogitTarget::kSample && target.token < limits_.vocab_size, "target token", target.token);
  }
}

}  // namespace minisgl
