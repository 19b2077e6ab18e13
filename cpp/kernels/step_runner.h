// Steps on a device: what comes before the operations of a step, and what they leave behind.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/error.h"
#include "kernels/query.h"
#include "kernels/step.h"

namespace minisgl {

class StepRunner {
 public:
  virtual ~StepRunner() = default;

  // Devices that record steps need all memory to be reserved first: nothing may move afterwards. Others need neither.
  virtual bool records_steps() const { return false; }
  virtual std::int64_t step_bytes(const StepLimits&) const { return 0; }  // at most, of reserve() and record_step()
  virtual void reserve(const StepLimits&) {}

  // What the penalties of a sequence count, over a vocabulary; `in_prompt`: the prompt's tokens count, too.
  virtual std::unique_ptr<SeenTokens> make_seen_tokens(std::int64_t vocab_size, bool in_prompt) = 0;

  // Whether a step may begin before the outputs of the one before it are taken: the device works while the host goes
  // on, and finds the tokens that it drew itself. Others compute everything within the calls.
  virtual bool runs_ahead() const { return false; }
  // Begins the step that the next operations belong to: they read the batch and the queries beside their arguments.
  // There is one query for each row of logits, or none where nobody samples. What both point to must stay until
  // run_step() returns.
  virtual void begin_step(const StepBatch& batch, std::span<const LogitQuery> queries) = 0;
  // Runs `body`, which makes the calls of the step. A device may replay what it recorded of a step of this form
  // instead. The outputs of each such step are taken, in order.
  virtual void run_step(const std::function<void()>& body) = 0;
  // The same in two halves, for a step whose queries await masks, on a device that runs ahead: `forward` makes the
  // calls up to the logits, which work goes on with while the masks are made; `sampling` the others. No step begins
  // between the two, but outputs of those before may be taken. `masks`: one for each query that awaits one.
  virtual void run_forward(const std::function<void()>& /*forward*/) { refuse_halves(); }
  virtual void run_sampling(std::span<const LateMask>, const std::function<void()>& /*sampling*/) { refuse_halves(); }
  // Begins the step of `batch`, which has one row and one query for each sequence, and records what `forward` and
  // `sampling` do, in one and in two halves, for it and for steps with fewer rows, down to the next that is recorded.
  // These may have several rows of a sequence, of which some are wanted: each counts as a sequence of its own.
  virtual void record_step(const StepBatch&, std::span<const LogitQuery>, const std::function<void()>& /*forward*/,
                           const std::function<void()>& /*sampling*/) {}
  // Waits for the oldest step whose outputs were not taken, and for no later one. Its answers are in the order of the
  // queries; none where there were none.
  virtual StepOutputs take_outputs() = 0;
  // Seconds that the device worked on the steps whose outputs were taken; 0 where it is the host that works.
  virtual double busy_seconds() const { return 0.0; }

 private:
  [[noreturn]] static void refuse_halves() {
    throw CheckError("no step awaits masks on a device that doesn't run ahead");
  }
};

}  // namespace minisgl
