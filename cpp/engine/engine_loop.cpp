#include "engine/engine_loop.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/log.h"

namespace minisgl {
namespace {

// At least so long a step waits for masks, so that all go on together.
constexpr Clock::duration kMaskPatience = std::chrono::milliseconds(2);

SchedulerOptions scheduler_options(const EngineConfig& config) {
  return {.num_pages = config.num_pages,
          .page_size = config.page_size,
          .max_running = config.max_running,
          .max_counting = config.max_penalized,
          .max_batch_tokens = config.max_batch_tokens,
          .max_drafts = config.max_drafts,
          .max_adapters = config.max_adapters,
          .prefix_cache = config.prefix_cache,
          .target_step_seconds = config.target_itl_ms / 1000,
          .host_pages = config.num_host_pages};
}

}  // namespace

EngineDoors::EngineDoors(const EngineConfig& config, std::int64_t vocab_size, Progress& progress)
    : inbox(config.max_running + config.max_waiting, progress),
      grammars(vocab_size, std::chrono::milliseconds(config.mask_limit_ms), [this] { inbox.wake(); }) {}

EngineLoop::EngineLoop(Model& model, Device& device, const EngineConfig& config, EngineDoors& doors,
                       const Adapters& adapters, PlanSenders plan_senders, MakeLookahead make_lookahead)
    : config_(config),
      model_(model),
      device_(device),
      doors_(doors),
      scheduler_(scheduler_options(config)),
      executor_(model, device, KvCache(device, model.spec(), config.kv_dtype, config.num_pages, config.page_size),
                adapters),
      publisher_(std::move(plan_senders)),
      sequences_(scheduler_, publisher_, executor_),
      guidance_(doors.grammars, sequences_, scheduler_, model.spec().vocab_size, config.overlap && device.runs_ahead()),
      drafting_(std::move(make_lookahead), sequences_, scheduler_),
      speculation_(config, scheduler_, config.overlap && device.runs_ahead()) {
  if (config.report_blocks) scheduler_.report_blocks(doors.block_events, device.has_own_memory() ? "GPU" : "CPU");
}

// Whatever happened, the device may still work on a step.
EngineLoop::~EngineLoop() {
  try {
    device_.synchronize();
  } catch (const std::exception& error) {
    log_line(LogLevel::error, std::string("the device's last step failed: ") + error.what());
  }
}

EngineMemory EngineLoop::prepare(const RecordProgress& progress) {
  EngineMemory memory;
  const Executor::Prepared prepared =
      executor_.prepare(step_limits(config_, model_.spec()), config_.cuda_graphs, progress);
  if (device_.has_own_memory()) {
    memory = {
        .workspace = prepared.workspace_bytes, .graphs = prepared.graph_bytes, .free = device_.available_memory()};
  }
  memory.stacked_rows = model_.stacked_rows();
  if (config_.num_host_pages > 0) memory.host_bytes_per_second = open_host_tier();
  deliver();  // the first statistics
  return memory;
}

// Returns the bytes per second from there to the device.
double EngineLoop::open_host_tier() {
  const double seconds = executor_.open_host_tier(config_.num_host_pages, [this] { doors_.inbox.wake(); });
  scheduler_.set_host_page_seconds(seconds);
  scheduler_.host_pages_ready(executor_.host_pages_ready());
  return static_cast<double>(bytes_per_page()) / seconds;
}

std::int64_t EngineLoop::bytes_per_page() const {
  return KvCache::bytes_per_page(model_.spec(), config_.kv_dtype, config_.page_size, device_.num_ranks());
}

void EngineLoop::run() noexcept {
  std::string what;
  int blamed_rank = -1;
  try {
    take_turns();
  } catch (const RankFailure& error) {
    what = error.what();
    blamed_rank = error.rank();
  } catch (const std::exception& error) {
    what = error.what();
    if (what.empty()) what = "an exception without a message";
  } catch (...) {
    what = "an exception of an unknown type";
  }
  end_all(what, blamed_rank);
}

void EngineLoop::take_turns() {
  while (running_) {
    take_commands();
    if (config_.num_host_pages > 0) note_copies();
    if (guidance_.has_grammars()) take_guidance();
    if (running_ && !is_early()) step();
    if (!running_ && executor_.awaits_masks()) draw();
    while (!running_ && scheduler_.num_in_flight() > 0) finish_step();
    deliver();
  }
  publisher_.shut_down();
}

// When the next step is planned if nobody comes before; none where there is nothing to do. While the device runs a long
// step there is time until somebody who comes would wait for one more.
std::optional<Clock::time_point> EngineLoop::next_plan() const {
  if (scheduler_.num_in_flight() > 0) return busy_since_ + pace_.next_after(scheduler_.oldest());
  if (scheduler_.may_plan()) return Clock::time_point{};
  return guidance_.has_grammars() ? std::optional(Clock::now() + std::chrono::milliseconds(config_.mask_limit_ms))
                                  : std::nullopt;
}

// Only masks came, of draws that the device isn't ready for: who comes until it is time to plan will be in the next
// step.
bool EngineLoop::is_early() const {
  return commands_.empty() && executor_.awaits_masks() && scheduler_.num_waiting() == 0 && Clock::now() < next_plan();
}

void EngineLoop::take_commands() {
  running_ = doors_.inbox.take(next_plan(), commands_);
  for (Command& command : commands_) {
    if (auto* submission = std::get_if<Submission>(&command)) {
      admit(std::move(*submission));
    } else {
      const std::optional<SequenceId> sequence = sequences_.requests().find(std::get<Abort>(command).id);
      if (sequence) abort(*sequence);  // else finished since
    }
  }
  if (running_) return;
  for (const SequenceId id : sequences_.requests().sequences()) abort(id);
}

void EngineLoop::admit(Submission submission) {
  Request& request = submission.request;
  std::vector<std::int32_t> stop_tokens = stop_tokens_of(request, model_.spec());
  const SequenceId id = sequences_.add(request, stop_tokens, submission.time);
  const bool is_guided = Guidance::concerns(request);
  const bool looks_ahead = !is_guided && drafting_.add(id, request);
  if (!is_guided && !looks_ahead) speculation_.add(id, request);
  Newcomer newcomer = make_newcomer(id, request, std::move(stop_tokens), submission.time);
  newcomer.sequence.needs_token |= looks_ahead;
  if (is_guided) {
    guidance_.admit(request, std::move(newcomer));
  } else {
    sequences_.enter(std::move(newcomer));
  }
}

void EngineLoop::abort(SequenceId id) {
  sequences_.abort(id);
  forget(id);
}

// The sequence has ended.
void EngineLoop::forget(SequenceId id) {
  guidance_.end(id);
  drafting_.end(id);
  speculation_.end(id);
}

// What the host tier's copies have come to since the last turn.
void EngineLoop::note_copies() {
  const std::uint64_t before = scheduler_.host()->num_done();
  scheduler_.copies_done(executor_.copies_done());
  scheduler_.host_pages_ready(executor_.host_pages_ready());
  if (scheduler_.host()->num_done() > before) device_.pool().progress().advance();
}

void EngineLoop::take_guidance() {
  if (guidance_.take()) device_.pool().progress().advance();
}

// Has the latest step draw, where it awaits masks, and launches one. When the pipeline is full (1 step in flight on a
// device that runs ahead, elsewhere and while drafts are tried 0), collects the oldest step's results.
void EngineLoop::step() {
  if (guidance_.has_grammars()) wait_for_masks();
  if (executor_.awaits_masks()) draw();
  while (speculation_.takes_turns() && scheduler_.num_in_flight() > 0) finish_step();
  const std::size_t depth = config_.overlap && !speculation_.takes_turns() ? executor_.depth() : 0;
  const bool launched = launch_step();
  if (scheduler_.num_in_flight() > (launched ? depth : 0)) finish_step();
}

// A step that awaits them works meanwhile, about as long as the last one.
void EngineLoop::wait_for_masks() {
  const Clock::time_point until = Clock::now() + std::max(kMaskPatience, last_step_time_ / 8);
  guidance_.wait(executor_.awaits_masks() ? std::max(until, busy_since_ + last_step_time_) : until);
  take_guidance();
}

// With the masks that are there: what a sequence without one would draw is withdrawn.
void EngineLoop::draw() {
  const std::span<const SequenceId> withdrawn = scheduler_.withdraw_held();
  publisher_.draw(withdrawn);
  executor_.draw(withdrawn);
}

// Returns false when no sequence can be computed, or none before the steps in flight are done.
bool EngineLoop::launch_step() {
  const Clock::time_point now = Clock::now();
  const StepPlan& plan = scheduler_.plan(now);
  for (const SequenceId id : scheduler_.preempted()) sequences_.pause(id);
  if (!plan.empty()) {
    if (scheduler_.num_in_flight() == 1) busy_since_ = now;
    sequences_.mark_started(plan, now);
    publisher_.step(plan);
    executor_.launch(plan);
  }
  for (const TierCopies* copies : scheduler_.tier_copies()) {
    publisher_.copy(*copies, static_cast<std::uint32_t>(scheduler_.num_in_flight()));
    executor_.copy(*copies);
  }
  return !plan.empty();
}

void EngineLoop::finish_step() {
  StepOutputs results = executor_.take();
  const Clock::time_point now = Clock::now();
  ++num_steps_;
  last_step_time_ = now - std::exchange(busy_since_, now);
  step_time_ += last_step_time_;
  const StepPlan& plan = scheduler_.oldest();
  pace_.learn(plan, last_step_time_);
  draws_.clear();
  for (std::size_t i = 0; i < results.tokens.size(); ++i) {
    if (plan.targets[i].token == LogitTarget::kSample) draws_.push_back(results.tokens[i].token);
  }
  accept_drafts(plan, draws_, drawn_);
  const double seconds = std::chrono::duration<double>(last_step_time_).count();
  scheduler_.complete(drawn_, seconds);
  speculation_.learn(plan, drawn_, now, seconds);
  for (const SequenceId id : sequences_.collect(plan, drawn_, results, now)) forget(id);
  guidance_.note(plan, drawn_);
  drafting_.note(plan);
  speculation_.propose();
  if (config_.check_invariants) scheduler_.check();
}

EngineStats EngineLoop::make_stats() const {
  const auto page_size = static_cast<std::uint64_t>(config_.page_size);
  const LiveRequests::Counts& counts = sequences_.requests().counts();
  EngineStats stats{.num_running = scheduler_.num_running(),
                    .num_waiting = scheduler_.num_waiting() + sequences_.num_kept(),
                    .waiting_by_priority = scheduler_.queue().waiting_by_priority(),
                    .pages_total = scheduler_.pages().num_total(),
                    .pages_free = scheduler_.num_available_pages(),
                    .pages_cached = scheduler_.tree().num_pages(),
                    .prefix_queries = scheduler_.prefix_counts().queries,
                    .prefix_hits = scheduler_.prefix_counts().hits,
                    .prefix_evictions = scheduler_.tree().num_evicted() * page_size,
                    .num_preemptions = scheduler_.num_preemptions(),
                    .num_steps = num_steps_,
                    .prompt_tokens = counts.prompt_tokens,
                    .generated_tokens = counts.generated_tokens,
                    .speculation = speculation_.counts(),
                    .step_seconds = std::chrono::duration<double>(step_time_).count(),
                    .device_busy_seconds = device_.busy_seconds()};
  if (scheduler_.host()) add_host_stats(stats);
  return stats;
}

void EngineLoop::add_host_stats(EngineStats& stats) const {
  const HostTier& host = *scheduler_.host();
  const auto bytes = static_cast<std::uint64_t>(bytes_per_page());
  stats.host_pages_ready = host.num_ready();
  stats.host_pages_cached = host.tree().num_pages();
  stats.host_queries = scheduler_.prefix_counts().host_queries;
  stats.host_hits = scheduler_.prefix_counts().host_hits;
  stats.host_evictions = host.tree().num_evicted() * static_cast<std::uint64_t>(config_.page_size);
  stats.host_bytes_out = host.num_copied_out() * bytes;
  stats.host_bytes_in = host.num_copied_in() * bytes;
}

// The statistics contain what the outputs say, and ended ids are free again, before anybody can see the outputs.
void EngineLoop::deliver() {
  doors_.status.set_stats(make_stats());
  LiveSequences::News news = sequences_.take_news();
  doors_.inbox.forget(news.ended);
  doors_.completions.publish(std::move(news.outputs));
}

// Refuses new requests and ends all live ones: with an error after a failure, which leaves the scheduler as it is, else
// as aborted.
void EngineLoop::end_all(const std::string& failure, int blamed_rank) {
  const bool failed = !failure.empty();
  const std::string message = "the engine failed: " + failure;
  if (failed) doors_.status.fail(failure, blamed_rank);
  LiveSequences::News last = sequences_.take_news();  // made before it went wrong, as good as ever
  doors_.inbox.forget(last.ended);
  for (const std::uint64_t id : doors_.inbox.close()) {
    last.outputs.push_back(failed ? error_output(id, ErrorCode::engine_failure, message)
                                  : RequestOutput{.id = id, .finish = FinishReason::abort});
  }
  doors_.completions.publish(std::move(last.outputs));
}

}  // namespace minisgl
