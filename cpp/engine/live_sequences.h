// A live sequence at all places that know it: its request's outputs, the scheduler, the other ranks and this one. What
// happens to it there happens in one order, and it leaves all of them at once.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/executor.h"
#include "engine/live_requests.h"
#include "engine/newcomer.h"
#include "engine/plan_publisher.h"
#include "sched/scheduler.h"

namespace minisgl {

// The engine thread's. Sequences end here by their tokens or by a call; who keeps more of one (Guidance, Drafting) is
// told by who called.
class LiveSequences {
 public:
  // All of them outlive it.
  LiveSequences(Scheduler& scheduler, PlanPublisher& publisher, Executor& executor)
      : scheduler_(scheduler), publisher_(publisher), executor_(executor) {}

  // As LiveRequests::add. The sequence is live, and is planned once it has entered.
  SequenceId add(const Request& request, const std::vector<std::int32_t>& stop_tokens, Clock::time_point submitted) {
    return requests_.add(request, stop_tokens, submitted);
  }
  void enter(Newcomer newcomer);
  // It enters later, if it hasn't ended by then.
  void keep(Newcomer newcomer);
  bool enter_kept(SequenceId id);  // false where it has entered before
  std::int64_t num_kept() const { return std::ssize(kept_); }
  const LiveRequests& requests() const { return requests_; }

  // A step of these sequences begins.
  void mark_started(const StepPlan& plan, Clock::time_point now) { requests_.mark_started(plan, now); }
  // The scheduler preempted it.
  void pause(SequenceId id);
  // One of these is its next token, as Executor::mask.
  void mask(SequenceId id, std::span<const std::uint32_t> words);
  // It gets tokens that nobody draws, as many of them as it may have. Returns whether it goes on.
  bool give(SequenceId id, std::span<const std::int32_t> tokens);
  // As LiveRequests::collect. Returns the sequences that have ended.
  std::vector<SequenceId> collect(const StepPlan& plan, const StepTokens& drawn, StepOutputs& results,
                                  Clock::time_point now);

  // Ends of a live sequence: by who asked for it, by what it asked for, by what it can't have.
  void abort(SequenceId id);
  void complete(SequenceId id, std::int32_t end_token);
  void refuse(SequenceId id, std::string error);

  // What was said since the last call, and the requests whose last outputs are among it.
  struct News {
    std::vector<RequestOutput> outputs = {};
    std::vector<std::uint64_t> ended = {};
  };
  News take_news();

 private:
  void report(RequestOutput&& output);
  void report(LiveRequests::Collected& collected);
  void remove(SequenceId id);

  Scheduler& scheduler_;
  PlanPublisher& publisher_;
  Executor& executor_;
  LiveRequests requests_;
  std::unordered_map<SequenceId, Newcomer> kept_;  // live sequences that haven't entered
  News news_;
};

}  // namespace minisgl
