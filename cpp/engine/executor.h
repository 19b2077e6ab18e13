// Runs step plans on one rank: cache, page tables, forward pass, sampling. Decides nothing: what to compute is in the
// plan, what a token means for its request is the engine's business. Every rank makes the same calls of add(),
// remove(), launch() and draw(), in the same order.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/adapters.h"
#include "engine/options.h"
#include "engine/request.h"
#include "kernels/device.h"
#include "models/model.h"
#include "sched/step_plan.h"

namespace minisgl {

// Whether devices count the sequence's tokens.
bool uses_penalties(const SamplingParams& params);
// Whether the distribution depends on the tokens before. Such a sequence draws one token per step.
bool depends_on_output(const SamplingParams& params);
// Whether what may be drawn depends on the latest token, which must be known when the sequence is planned.
bool needs_latest_token(const SamplingParams& params);

// The largest step of an engine with this configuration.
StepLimits step_limits(const EngineConfig& config, const ModelSpec& spec);

class Executor {
 public:
  // `model`, `device` and `adapters` outlive the executor.
  Executor(Model& model, Device& device, KvCache cache, const Adapters& adapters);

  // On a device that records steps, reserves what the largest need, rehearses prompts of several lengths, so that
  // nobody waits for what is loaded or measured at a first use, and with `record_decodes` records decode steps for a
  // ladder of numbers of sequences, the largest first, calling progress(recorded, to be recorded) on this thread.
  // Before the first add(). Says what of the device's memory that took.
  struct Prepared {
    std::int64_t workspace_bytes = 0, graph_bytes = 0;
  };
  Prepared prepare(const StepLimits& limits, bool record_decodes, const RecordProgress& progress = {});

  // Makes the pages of the host tier, after prepare(), and measures how long one takes from there to the device.
  // `on_change` as HostPagesOptions's. Throws InputError where the host has no memory for them.
  double open_host_tier(std::int64_t num_pages, std::function<void()> on_change);
  // Frees them, when the steps and the copies that were begun are done. No call that needs them follows.
  void close_host_tier() noexcept;
  // With a host tier: begins copies, behind all that the steps taken so far did.
  void copy(const TierCopies& copies);
  std::uint64_t copies_done() const { return host_->num_done(); }
  std::int64_t host_pages_ready() const { return host_->num_ready(); }

  // A sequence exists from add() to remove(), across preemptions. Plans name no others. It may be removed while a step
  // that computes it is in flight.
  void add(SequenceId id, SequenceSampling sampling);
  void remove(SequenceId id);

  // Steps that may be in flight when one more is launched: 1 where the device runs ahead, else 0.
  std::size_t depth() const { return device_.runs_ahead() ? 1 : 0; }
  // The host gave the sequence these tokens, which nobody draws: the penalties count them as output.
  void append(SequenceId id, std::span<const std::int32_t> tokens);
  // One of these is the sequence's next token, until another mask comes: mask_words(vocab_size) words as in a
  // TokenMask. It stands in place of allowed_token_ids. Without words, these hold again.
  void mask(SequenceId id, std::span<const std::uint32_t> words);
  // The sequence was preempted: until it goes on it takes no room on the device. `output`: all that was generated for
  // it. No step in flight computes it.
  void pause(SequenceId id, std::span<const std::int32_t> output);
  const SequenceSampling& sampling(SequenceId id) const;
  // Copies the plan's pages and hands its rows to the device. The plan isn't needed afterwards.
  // Where draws of the plan await masks, draw() has to follow before the next launch.
  void launch(const StepPlan& plan);
  // The latest step's draws await masks.
  bool awaits_masks() const { return !awaiting_.empty(); }
  // Has the step draw, with the latest mask of each sequence that awaits one. There is no draw for those that were
  // removed, and for these.
  void draw(std::span<const SequenceId> withdrawn);
  // Waits for the oldest step in flight. One entry for each of its logit rows, in order: the token drawn, or the prompt
  // token that was scored. Log probabilities are filled in where the sequence asked for them.
  StepOutputs take();

 private:
  struct LiveSequence {
    SequenceSampling sampling;
    std::shared_ptr<const Adapter> adapter = {};  // from the first step on, where plans name one
    std::vector<PageId> page_table = {};
    bool needs_latest_token = false;
    bool has_started = false;                  // a step computes rows of it: `seen` and `mask` are made
    std::unique_ptr<SeenTokens> seen = {};     // where a penalty is set
    std::vector<std::uint32_t> mask = {};      // [mask_words] by mask(), else of params.allowed_token_ids; or empty
    std::vector<std::int32_t> generated = {};  // where needs_latest_token: all that the steps' rows named so far
    std::vector<std::int32_t> banned = {};     // by bad words and min_tokens in the step at hand
  };

  const LiveSequence& live(SequenceId id) const;
  LiveSequence& live(SequenceId id) { return const_cast<LiveSequence&>(std::as_const(*this).live(id)); }
  void rehearse(std::int64_t num_rows, std::int64_t max_positions);
  void record(const std::vector<std::int64_t>& sizes, const RecordProgress& progress);
  void build_batch(const StepPlan& plan);
  void start(LiveSequence& sequence) const;
  void allow(LiveSequence& sequence) const;
  static void note_generated(LiveSequence& sequence, const SequenceStep& step, const StepPlan& plan);
  static std::span<const std::int32_t> bans_of(LiveSequence& sequence, std::int64_t num_generated);
  LogitQuery query_for(std::int32_t row, const LogitTarget& target, const StepPlan& plan) const;

  Model& model_;
  Device& device_;
  KvCache cache_;
  const Adapters& adapters_;
  std::unique_ptr<HostPages> host_;  // null: there is no host tier
  std::unordered_map<SequenceId, LiveSequence> sequences_;

  // The step at hand.
  std::vector<LiveSequence*> live_;      // [plan.sequences]
  std::vector<std::int32_t> positions_;  // [num_rows]
  std::vector<ops::SequenceRows> rows_;  // [plan.sequences]
  std::vector<LogitQuery> queries_;      // [plan.targets]
  // Until draw(): what the masks are for.
  struct Awaiting {
    std::int32_t query;
    SequenceId id;
  };
  std::vector<Awaiting> awaiting_;
  std::vector<LateMask> masks_;  // of draw(), kept for its memory
  Tensor logits_{};              // as forward() left them; a replayed step has its own
};

}  // namespace minisgl
