// What rank 0 says to the other ranks, as bytes: sequences that come and go, and step plans. A frame holds any number
// of messages, each a byte that says its kind and its fields, little-endian, as the structs name them; lists have their
// length before them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/request.h"
#include "sched/step_plan.h"

namespace minisgl {

// Receives the decoded messages.
class PlanHandler {
 public:
  virtual ~PlanHandler() = default;
  virtual void add(SequenceId id, SequenceSampling sampling) = 0;
  virtual void remove(SequenceId id) = 0;
  virtual void step(const StepPlan& plan) = 0;
  virtual void shut_down() = 0;  // nothing follows
};

// Puts messages together into a frame.
class PlanEncoder final : public PlanHandler {
 public:
  void add(SequenceId id, SequenceSampling sampling) override;
  void remove(SequenceId id) override;
  void step(const StepPlan& plan) override;
  void shut_down() override;

  std::span<const std::byte> frame() const { return bytes_; }
  void clear() { bytes_.clear(); }

 private:
  template <typename T>
  void put(const T& value);
  template <typename T>
  void put_list(const std::vector<T>& values);

  std::vector<std::byte> bytes_;
};

// What a plan may name on this rank.
struct PlanLimits {
  std::int64_t num_pages = 0;
  int page_size = 1;
  std::int64_t max_model_len = 0;
  std::int64_t max_batch_tokens = 0;  // rows of a step
  std::int64_t vocab_size = 0;
  bool runs_ahead = false;  // a plan's token may be drawn by the step before
};

// Reads frames and hands their messages on. InputError for bytes that are no frame, or a plan that would touch what
// isn't there; the messages before it were handed on then.
class PlanDecoder {
 public:
  explicit PlanDecoder(const PlanLimits& limits) : limits_(limits) {}
  void decode(std::span<const std::byte> frame, PlanHandler& handler);

 private:
  void check(const SequenceSampling& sampling) const;
  void check(const StepPlan& plan);

  const PlanLimits limits_;
  StepPlan plan_;
  std::vector<SequenceId> ids_;  // of the plan, sorted
  std::int64_t num_drawn_ = 0;   // targets of the last plan, where this rank runs ahead
};

}  // namespace minisgl
