// Reading frames checks every length, and every index before anybody uses it.
#include <algorithm>
#include <cstring>
#include <string_view>
#include <type_traits>
#include <unordered_set>
#include <utility>

#include "core/byte_reader.h"
#include "core/error.h"
#include "engine/plan_codec.h"
#include "engine/plan_wire.h"
#include "engine/sampling_fields.h"

namespace minisgl {
namespace {

using namespace plan_wire;

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
  void read(std::vector<TokenBias>& biases, std::string_view what) {
    biases.resize(get_length(8, what));
    for (auto& [token, bias] : biases) {
      read(token, what);
      read(bias, what);
    }
  }
  void read(std::vector<std::int32_t>& tokens, std::string_view what) { read_list(tokens, what); }
  void read(std::vector<std::vector<std::int32_t>>& words, std::string_view what) {
    words.resize(get_length(sizeof(std::uint32_t), what));
    for (std::vector<std::int32_t>& word : words) read(word, what);
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
  std::vector<T> get_list(std::string_view what) {
    std::vector<T> values;
    read_list(values, what);
    return values;
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
  for_each_sampling_field([&](const auto& field) { fields.read(sampling.params.*field.member, field.name); });
  fields.read(sampling.prompt_len, "prompt_len");
  fields.read_list(sampling.prompt, "prompt");
  fields.read_list(sampling.resumed, "resumed");
  fields.read(sampling.min_tokens, "min_tokens");
  fields.read_list(sampling.stop_tokens, "stop_tokens");
  fields.read(sampling.logprobs, "logprobs");
  fields.read(sampling.prompt_logprobs, "prompt_logprobs");
  return sampling;
}

// Reads a frame's first bytes. Another release may say everything after them in another way.
void check_header(Fields& fields) {
  const auto header = fields.get<FrameHeader>("the header");
  if (header.magic != FrameHeader().magic) throw InputError("a plan is damaged: it doesn't begin with MSP");
  if (header.version == kPlanVersion) return;
  throw InputError(concat("rank 0 sends step plans of version ", static_cast<int>(header.version),
                          ", this rank reads version ", static_cast<int>(kPlanVersion),
                          ": every host must run the same release of minisgl"));
}

void read_sequences(Fields& fields, StepPlan& plan) {
  const std::size_t length = fields.get_length(sizeof(WireSequence), "sequences");
  plan.sequences.resize(length);
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
            .num_draws = wire.num_draws};
    require(wire.num_rows >= 1, "num_rows", wire.num_rows);
    require(wire.num_draws >= 0 && wire.num_draws <= wire.num_rows, "num_draws", wire.num_draws);
    row += wire.num_rows;
    new_page += wire.num_new_pages;
    require(row <= plan.num_rows(), "number of rows", plan.num_rows());
  }
  require(row == plan.num_rows(), "number of rows", plan.num_rows());
  fields.read_list(plan.new_pages, "new_pages");
  require(new_page == std::ssize(plan.new_pages), "number of new pages", std::ssize(plan.new_pages));
}

// The rows whose logits are wanted: those that are scored, and each part's last for its draws.
void place_targets(std::span<const WireScore> scores, StepPlan& plan) {
  std::size_t next = 0;
  std::int32_t index = 0, last = -1;
  for (const SequenceStep& step : plan.sequences) {
    const std::int32_t first_draw = step.first_draw();
    for (; next < scores.size() && scores[next].row < first_draw; ++next) {
      require(scores[next].row >= step.first_row && scores[next].row > last, "scored row", scores[next].row);
      last = scores[next].row;
      plan.logit_rows.push_back(last);
      require(scores[next].token >= 0, "scored token", scores[next].token);
      plan.targets.push_back({index, scores[next].token});
    }
    for (std::int32_t row = first_draw; row < step.first_row + step.num_rows; ++row) {
      plan.logit_rows.push_back(row);
      plan.targets.push_back({index, LogitTarget::kSample});
    }
    ++index;
  }
  require(next == scores.size(), "scored row", next < scores.size() ? scores[next].row : 0);
}

// A field of some sequences, in their order.
void read_fields(Fields& fields, StepPlan& plan, std::int32_t SequenceStep::* member, std::string_view what) {
  std::int64_t last = -1;
  for (const auto& [sequence, value] : fields.get_list<WireField>(what)) {
    require(sequence > last && sequence < std::ssize(plan.sequences), "sequence", sequence);
    require(value > 0, what, value);
    plan.sequences[static_cast<std::size_t>(sequence)].*member = value;
    last = sequence;
  }
}

void place_hidden_rows(StepPlan& plan) {
  for (const SequenceStep& step : plan.sequences) {
    require(step.num_hidden <= step.num_rows && (step.num_hidden == 0 || step.num_draws == 0), "num_hidden",
            step.num_hidden);
    const std::int32_t end = step.first_row + step.num_rows;
    for (std::int32_t row = end - step.num_hidden; row < end; ++row) plan.hidden_rows.push_back(row);
  }
}

void read_plan(Fields& fields, StepPlan& plan) {
  plan.clear();
  fields.read_list(plan.tokens, "tokens");
  read_sequences(fields, plan);
  const auto sections = fields.get<std::uint8_t>("sections");
  require((sections & ~kAllSections) == 0, "sections", sections);
  std::vector<WireScore> scores;
  if (sections & kScores) fields.read_list(scores, "scores");
  place_targets(scores, plan);
  if (sections & kHidden) {
    read_fields(fields, plan, &SequenceStep::num_hidden, "num_hidden");
    place_hidden_rows(plan);
  }
  if (sections & kAdapters) read_fields(fields, plan, &SequenceStep::adapter, "adapter");
  if (sections & kCopies) fields.read_list(plan.copies, "copies");
  if (sections & kCopiesBefore) fields.read(plan.copies_before, "copies_before");
  if (sections & kAwaitedMasks) read_fields(fields, plan, &SequenceStep::awaits_mask, "awaits_mask");
}

std::uint32_t read_copies(Fields& fields, TierCopies& copies) {
  fields.read(copies.number, "copies' number");
  const auto num_in_flight = fields.get<std::uint32_t>("number of steps in flight");
  const auto to_host = fields.get<std::uint8_t>("copies' direction");
  require(to_host <= 1, "copies' direction", to_host);
  copies.to_host = to_host != 0;
  fields.read_list(copies.pages, "copies");
  return num_in_flight;
}

// Copies may be made in any order, from `num_sources` pages to `num_destinations`. Returns the destinations.
std::unordered_set<PageId> check_pairs(std::span<const PagePair> pairs, std::int64_t num_sources,
                                       std::int64_t num_destinations) {
  std::unordered_set<PageId> destinations;
  for (const auto& [source, destination] : pairs) {
    require(source >= 0 && source < num_sources, "page", source);
    require(destination >= 0 && destination < num_destinations, "page", destination);
    require(destinations.insert(destination).second, "destination", destination);
  }
  return destinations;
}

}  // namespace

void PlanDecoder::decode(std::span<const std::byte> frame, PlanHandler& handler) {
  Fields fields(frame);
  if (!fields.done()) check_header(fields);
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
      case Kind::append:
      case Kind::pause: {
        const auto id = fields.get<SequenceId>("an id");
        const auto tokens = fields.get_list<std::int32_t>("a sequence's tokens");
        for (const std::int32_t token : tokens) check_token(token);
        Kind{kind} == Kind::append ? handler.append(id, tokens) : handler.pause(id, tokens);
        break;
      }
      case Kind::mask: {
        const auto id = fields.get<SequenceId>("an id");
        const auto words = fields.get_list<std::uint32_t>("a mask");
        require(words.empty() || std::ssize(words) == mask_words(limits_.vocab_size), "number of a mask's words",
                std::ssize(words));
        handler.mask(id, words);
        break;
      }
      case Kind::step:
        read_plan(fields, plan_);
        check(plan_);
        if (limits_.runs_ahead) num_drawn_ = std::ssize(plan_.targets);
        handler.step(plan_);
        break;
      case Kind::draw: {
        const auto withdrawn = fields.get_list<SequenceId>("withdrawn draws");
        if (!std::exchange(awaits_masks_, false)) throw InputError("a plan is damaged: no step awaits masks");
        handler.draw(withdrawn);
        break;
      }
      case Kind::copy: {
        const std::uint32_t num_in_flight = read_copies(fields, copies_);
        check(copies_);
        handler.copy(copies_, num_in_flight);
        break;
      }
      case Kind::shut_down: handler.shut_down(); break;
      default: fields.refuse("a message's kind", static_cast<int>(kind));
    }
  }
}

void PlanDecoder::check_token(std::int32_t token) const {
  require(token >= 0 && token < limits_.vocab_size, "token", token);
}

// Tokens in a field of the sampling parameters, by the field's type.
template <typename Value>
void PlanDecoder::check_tokens(const Value& value) const {
  if constexpr (std::is_same_v<Value, std::vector<std::pair<std::int32_t, float>>>) {
    for (const auto& [token, bias] : value) check_token(token);
  } else if constexpr (std::is_same_v<Value, std::vector<std::int32_t>>) {
    for (const std::int32_t token : value) check_token(token);
  } else if constexpr (std::is_same_v<Value, std::vector<std::vector<std::int32_t>>>) {
    for (const std::vector<std::int32_t>& tokens : value) {
      require(!tokens.empty(), "length of a list of tokens", 0);
      check_tokens(tokens);
    }
  } else {
    static_assert(std::is_arithmetic_v<Value>);
  }
}

void PlanDecoder::check(const SequenceSampling& sampling) const {
  require(sampling.prompt_len >= 1 && sampling.prompt_len <= limits_.max_model_len, "prompt_len", sampling.prompt_len);
  require(sampling.min_tokens >= 0, "min_tokens", sampling.min_tokens);
  require(sampling.prompt.empty() || std::ssize(sampling.prompt) == sampling.prompt_len, "number of prompt tokens",
          std::ssize(sampling.prompt));
  for (const std::int32_t token : sampling.prompt) check_token(token);
  for (const std::int32_t token : sampling.resumed) check_token(token);
  for (const std::int32_t token : sampling.stop_tokens) check_token(token);
  for_each_sampling_field([&](const auto& field) { check_tokens(sampling.params.*field.member); });
  for (const std::int32_t count : {sampling.logprobs, sampling.prompt_logprobs}) {
    require(count >= -1 && count <= limits_.vocab_size, "number of log probabilities", count);
  }
}

// Positions and pages within the cache, each sequence once; a token that is still to be drawn can only be the last of a
// sequence that tries no drafts.
void PlanDecoder::check(const StepPlan& plan) {
  if (awaits_masks_) throw InputError("a plan is damaged: the step before awaits masks");
  awaits_masks_ = std::ranges::any_of(plan.sequences, [](const SequenceStep& step) { return step.awaits_mask != 0; });
  require(plan.num_rows() <= limits_.max_batch_tokens, "number of rows", plan.num_rows());
  const std::int64_t num_logits = std::ssize(plan.logit_rows), num_hidden = std::ssize(plan.hidden_rows);
  require(num_logits <= limits_.max_logits, "number of rows of logits", num_logits);
  require(num_hidden <= limits_.max_hidden, "number of rows of hidden states", num_hidden);
  ids_.clear();
  for (const SequenceStep& step : plan.sequences) ids_.push_back(step.id);
  if (!std::ranges::is_sorted(ids_)) std::ranges::sort(ids_);  // they mostly are
  if (const auto twice = std::ranges::adjacent_find(ids_); twice != ids_.end()) {
    throw InputError(concat("a plan is damaged: it has sequence ", *twice, " twice"));
  }
  for (const SequenceStep& step : plan.sequences) {
    const std::int64_t num_known = step.num_rows - (step.num_drafts() > 0 ? 0 : 1);
    for (std::int64_t row = step.first_row; row < step.first_row + num_known; ++row) {
      require(plan.tokens[static_cast<std::size_t>(row)] >= 0, "token", plan.tokens[static_cast<std::size_t>(row)]);
    }
    const std::int64_t end = std::int64_t{step.start_position} + step.num_rows;
    const std::int64_t num_pages = std::int64_t{step.num_kept_pages} + step.num_new_pages;
    require(step.start_position >= 0 && end <= limits_.max_model_len, "start_position", step.start_position);
    require(step.num_kept_pages >= 0 && step.num_new_pages >= 0 && num_pages <= limits_.num_pages &&
                end <= num_pages * limits_.page_size,
            "num_new_pages", step.num_new_pages);
    require(step.adapter <= limits_.num_adapters, "adapter", step.adapter);
    require(step.awaits_mask == 0 || (step.awaits_mask == 1 && step.num_draws == 1), "awaits_mask", step.awaits_mask);
  }
  for (const PageId page : plan.new_pages) check_page(page);
  for (const std::int32_t token : plan.tokens) {
    require(token >= -num_drawn_ && token < limits_.vocab_size, "token", token);
  }
  for (const LogitTarget& target : plan.targets) {
    require(target.token < limits_.vocab_size, "scored token", target.token);
  }
  require(plan.copies_before <= num_copies_, "copies_before", static_cast<std::int64_t>(plan.copies_before));
  if (plan.copies.empty()) return;
  const auto destinations = check_pairs(plan.copies, limits_.num_pages, limits_.num_pages);
  for (const PagePair& copy : plan.copies) require(!destinations.contains(copy.source), "source", copy.source);
}

void PlanDecoder::check_page(PageId page) const {
  require(page >= 0 && page < limits_.num_pages, "page", page);
}

// Each has the number after the last one's.
void PlanDecoder::check(const TierCopies& copies) {
  require(copies.number == num_copies_ + 1, "copies' number", static_cast<std::int64_t>(copies.number));
  num_copies_ = copies.number;
  const std::int64_t device = limits_.num_pages, host = limits_.num_host_pages;
  copies.to_host ? check_pairs(copies.pages, device, host) : check_pairs(copies.pages, host, device);
}

}  // namespace minisgl
