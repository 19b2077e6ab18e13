// What rank 0 says to the other ranks, as bytes: sequences that come and go, and step plans. A frame begins with its
// version and holds any number of messages, each a byte that says its kind and its fields, little-endian, as the
// structs name them; lists have their length before them. What few plans have stands in sections behind a plan's lists.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/request.h"
#include "sched/step_plan.h"

namespace minisgl {

// Goes up with every change to what frames hold: ranks of two releases refuse each other.
inline constexpr std::uint8_t kPlanVersion = 9;

// Receives the messages, in order.
class PlanHandler {
 public:
  virtual ~PlanHandler() = default;
  virtual void add(SequenceId id, SequenceSampling sampling) = 0;
  virtual void remove(SequenceId id) = 0;
  // The host gave the sequence these tokens; nobody draws them.
  virtual void append(SequenceId id, std::span<const std::int32_t> tokens) = 0;
  // The sequence's next token is one of these, a bit each as in a TokenMask, until another mask comes. Without words:
  // no mask holds any more.
  virtual void mask(SequenceId id, std::span<const std::uint32_t> words) = 0;
  // The sequence was preempted: what the device keeps of it is made again of these tokens, all that were generated for
  // it, when a step computes it again.
  virtual void pause(SequenceId id, std::span<const std::int32_t> output) = 0;
  virtual void step(const StepPlan& plan) = 0;
  // The masks that draws of the latest step await are there, each the latest of its sequence, but for these sequences:
  // their draws are withdrawn. Where draws await masks, no other step comes before.
  virtual void draw(std::span<const SequenceId> withdrawn) = 0;
  // Copies between the tiers of the cache, begun once no more than `num_in_flight` of the steps so far are in flight.
  virtual void copy(const TierCopies& copies, std::uint32_t num_in_flight) = 0;
  virtual void shut_down() = 0;  // nothing follows
};

// Puts messages together into a frame.
class PlanEncoder final : public PlanHandler {
 public:
  void add(SequenceId id, SequenceSampling sampling) override;
  void remove(SequenceId id) override;
  void append(SequenceId id, std::span<const std::int32_t> tokens) override;
  void mask(SequenceId id, std::span<const std::uint32_t> words) override;
  void pause(SequenceId id, std::span<const std::int32_t> output) override;
  void step(const StepPlan& plan) override;
  void draw(std::span<const SequenceId> withdrawn) override;
  void copy(const TierCopies& copies, std::uint32_t num_in_flight) override;
  void shut_down() override;

  std::span<const std::byte> frame() const { return bytes_; }
  void clear() { bytes_.clear(); }

 private:
  template <typename T>
  void put(const T& value);
  void put(const std::vector<TokenBias>& biases);
  void put(const std::vector<std::int32_t>& tokens);
  void put(const std::vector<std::vector<std::int32_t>>& words);
  template <typename T>
  void put_list(std::span<const T> values);
  void begin(std::uint8_t kind);
  void put_tokens(std::uint8_t kind, SequenceId id, std::span<const std::int32_t> tokens);

  std::vector<std::byte> bytes_;
};

// What a plan may name on this rank.
struct PlanLimits {
  std::int64_t num_pages = 0;
  std::int64_t num_host_pages = 0;  // of the host tier
  int page_size = 1;
  std::int64_t max_model_len = 0;
  std::int64_t max_batch_tokens = 0;  // rows of a step
  std::int64_t max_logits = 0;        // rows of a step whose logits are wanted
  std::int64_t max_hidden = 0;        // rows of a step whose hidden states are wanted
  std::int64_t vocab_size = 0;
  std::int32_t num_adapters = 0;
  bool runs_ahead = false;  // a plan's token may be drawn by the step before
};

// Reads frames and hands their messages on. InputError for bytes that are no frame, for one of another version, which
// the sentence names, and for a plan that would touch what isn't there; the messages before it were handed on then.
class PlanDecoder {
 public:
  explicit PlanDecoder(const PlanLimits& limits) : limits_(limits) {}
  void decode(std::span<const std::byte> frame, PlanHandler& handler);

 private:
  void check_token(std::int32_t token) const;
  template <typename Value>
  void check_tokens(const Value& value) const;
  void check_page(PageId page) const;
  void check(const TierCopies& copies);
  void check(const SequenceSampling& sampling) const;
  void check(const StepPlan& plan);

  const PlanLimits limits_;
  StepPlan plan_;
  TierCopies copies_;
  std::vector<SequenceId> ids_;   // those of the plan at hand, sorted
  std::uint64_t num_copies_ = 0;  // the number of the last copies between tiers
  std::int64_t num_drawn_ = 0;    // targets of the last plan, where this rank runs ahead
  bool awaits_masks_ = false;     // draws of the last plan do
};

}  // namespace minisgl
