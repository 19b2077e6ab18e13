// The engine thread: it takes commands, plans and launches a step, takes the results of the oldest, and delivers.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cache/block_events.h"
#include "comm/plan_channel.h"
#include "engine/adapters.h"
#include "engine/completion_queue.h"
#include "engine/drafting.h"
#include "engine/engine_status.h"
#include "engine/executor.h"
#include "engine/grammars.h"
#include "engine/guidance.h"
#include "engine/inbox.h"
#include "engine/live_sequences.h"
#include "engine/plan_publisher.h"
#include "engine/speculation.h"
#include "engine/step_pace.h"
#include "sched/scheduler.h"

namespace minisgl {

// What stands between the engine thread and all others; each part has a lock of its own.
struct EngineDoors {
  EngineDoors(const EngineConfig& config, std::int64_t vocab_size, Progress& progress);

  Inbox inbox;
  CompletionQueue completions;
  BlockEvents block_events;
  Grammars grammars;
  EngineStatus status;
};

// Owns what the engine thread alone uses. Made on another thread, which calls prepare() before run() begins.
class EngineLoop {
 public:
  // All but the last two outlive it; `make_lookahead` may be empty.
  EngineLoop(Model& model, Device& device, const EngineConfig& config, EngineDoors& doors, const Adapters& adapters,
             PlanSenders plan_senders, MakeLookahead make_lookahead);
  ~EngineLoop();  // when the device is done
  EngineLoop(const EngineLoop&) = delete;

  // Reserves what the largest step needs, records steps where the device does, and opens the host tier.
  EngineMemory prepare(const RecordProgress& progress);
  // The thread's life. Ends after a stop or a failure, when each live request has had its last output.
  void run() noexcept;
  // After run(). Frees memory that others may need, whoever still has the engine.
  void close_host_tier() noexcept { executor_.close_host_tier(); }

 private:
  double open_host_tier();
  std::int64_t bytes_per_page() const;  // of this rank
  void take_turns();
  std::optional<Clock::time_point> next_plan() const;
  bool is_early() const;
  void take_commands();
  void admit(Submission submission);
  void abort(SequenceId id);
  void forget(SequenceId id);
  void note_copies();
  void take_guidance();
  void step();
  void wait_for_masks();
  void draw();
  bool launch_step();
  void finish_step();
  EngineStats make_stats() const;
  void add_host_stats(EngineStats& stats) const;
  void deliver();
  void end_all(const std::string& failure, int blamed_rank);

  const EngineConfig& config_;
  Model& model_;
  Device& device_;
  EngineDoors& doors_;

  Scheduler scheduler_;
  Executor executor_;
  PlanPublisher publisher_;
  LiveSequences sequences_;
  Guidance guidance_;
  Drafting drafting_;
  Speculation speculation_;

  std::vector<Command> commands_;    // of this turn
  std::vector<std::int32_t> draws_;  // drawn by the step at hand, one per draw
  StepTokens drawn_;
  std::uint64_t num_steps_ = 0;
  Clock::time_point busy_since_ = {};  // the oldest step's launch, or the end of the one before it
  Clock::duration step_time_ = {};     // all steps so far
  Clock::duration last_step_time_ = {};
  StepPace pace_;
  bool running_ = true;
};

}  // namespace minisgl
