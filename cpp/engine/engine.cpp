// The engine thread: take commands, plan and launch a step, take the results of the oldest, deliver.
#include "engine/engine.h"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "core/quiet_thread.h"
#include "engine/completion_queue.h"
#include "engine/executor.h"
#include "engine/grammars.h"
#include "engine/inbox.h"
#include "engine/live_requests.h"
#include "engine/plan_publisher.h"
#include "engine/step_pace.h"
#include "engine/thought.h"
#include "engine/token_mask.h"
#include "engine/validation.h"
#include "sched/scheduler.h"

namespace minisgl {
namespace {

// At least so long a step waits for masks, so that all go on together.
constexpr Clock::duration kMaskPatience = std::chrono::milliseconds(2);

const EngineConfig& checked(const EngineConfig& config, const ModelSpec& spec) {
  MINISGL_CHECK(config.page_size >= 1 && config.num_pages >= 1, config.num_pages, " pages of ", config.page_size);
  MINISGL_CHECK(config.max_model_len >= 1 && config.max_model_len <= spec.max_position, "max_model_len is ",
                config.max_model_len, ", the model's positions are ", spec.max_position);
  MINISGL_CHECK(config.max_model_len <= config.num_pages * config.page_size, "max_model_len ", config.max_model_len,
                " does not fit ", config.num_pages, " pages of ", config.page_size);
  MINISGL_CHECK(config.max_waiting >= 0, "max_waiting is ", config.max_waiting);
  MINISGL_CHECK(config.num_host_pages == 0 || config.prefix_cache, "a host tier without a prefix cache");
  return config;
}

SchedulerOptions scheduler_options(const EngineConfig& config) {
  return {.num_pages = config.num_pages,
          .page_size = config.page_size,
          .max_running = config.max_running,
          .max_counting = config.max_penalized,
          .max_batch_tokens = config.max_batch_tokens,
          .max_drafts = config.max_drafts,
          .prefix_cache = config.prefix_cache,
          .target_step_seconds = config.target_itl_ms / 1000,
          .host_pages = config.num_host_pages};
}

// What ends a request, sorted: its own stop tokens, and the model's unless it ignores them.
std::vector<std::int32_t> stop_tokens_of(const Request& request, const ModelSpec& spec) {
  std::vector<std::int32_t> tokens = request.stop_token_ids;
  if (!request.ignore_eos) tokens.insert(tokens.end(), spec.eos_token_ids.begin(), spec.eos_token_ids.end());
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  return tokens;
}

RequestOutput error_output(std::uint64_t id, ErrorCode code, std::string message) {
  return {.id = id, .finish = FinishReason::error, .error_code = code, .error = std::move(message)};
}

struct SequenceLookahead {
  std::unique_ptr<Lookahead> lookahead;
  bool may_draft;
};

// The thought of a sequence that has a budget for it.
struct LimitedThought {
  Thought thought;
  bool needs_token;       // the sequence does, for another reason
  bool has_mask = false;  // the thought's closing is its mask
};

// A sequence before it enters the scheduler.
struct Newcomer {
  SequenceSampling sampling;
  NewSequence sequence;
};

}  // namespace

struct Engine::Impl {
  Impl(std::unique_ptr<Model> model, std::unique_ptr<Device> device, const EngineConfig& config,
       PlanSenders plan_senders, const RecordProgress& progress, MakeLookahead make_lookahead);
  ~Impl();

  std::int64_t bytes_per_page() const;  // of this rank
  void run() noexcept;
  void open_host_tier();
  void take_commands();
  void note_copies();
  std::optional<Clock::time_point> next_plan() const;
  void admit(Submission submission);
  void enter(SequenceId id, Newcomer newcomer);
  void take_grammars();
  void take_grammar(GrammarResult result);
  void advance_grammars(const StepPlan& plan);
  void note_thoughts(const StepPlan& plan);
  void lead_thought(SequenceId id);
  void set_mask(SequenceId id, std::span<const std::uint32_t> words);
  void abort(SequenceId id);
  void step();
  bool launch_step();
  void give_back_counts(SequenceId id);
  void finish_step();
  void look_ahead(SequenceId id);
  bool give(SequenceId id, std::span<const std::int32_t> tokens);
  void take_over(LiveRequests::Collected collected);
  void release(SequenceId id);
  void add_host_stats();
  void deliver();
  void end_all(const std::string& failure);

  const EngineConfig config;
  // The executor's model and device outlive it: members are destroyed from the last to the first.
  const std::unique_ptr<Device> device;
  const std::unique_ptr<Model> model;
  EngineMemory memory;  // constant once made

  // Shared by all threads; each has its own lock.
  Inbox inbox;
  CompletionQueue completions;
  BlockEvents block_events;
  Grammars grammars;
  mutable std::mutex status_mutex;  // guards the next three
  EngineStats stats;
  std::string failure;
  int blamed_rank = -1;
  std::mutex lifecycle_mutex;  // start and stop, one at a time; guards the next two
  std::thread thread;
  bool stopped = false;

  // The engine thread alone uses these.
  Scheduler scheduler;
  Executor executor;
  PlanPublisher publisher;
  LiveRequests live;
  const MakeLookahead make_lookahead;  // may be empty
  std::unordered_map<SequenceId, SequenceLookahead> lookaheads;
  std::unordered_map<SequenceId, LimitedThought> thoughts;  // those that aren't over
  std::unordered_map<SequenceId, Newcomer> newcomers;       // those whose grammars are read
  std::vector<GrammarResult> grammar_results;
  std::vector<Grammars::Advance> advances;
  std::vector<std::int32_t> draws;  // drawn by the step at hand, one per draw
  StepTokens drawn;
  std::vector<Command> commands;
  std::vector<RequestOutput> outputs;  // those of this turn
  std::vector<std::uint64_t> ended;    // ids of the requests whose last output is among them
  std::uint64_t num_steps = 0;
  Clock::time_point busy_since = {};  // the oldest step's launch, or the end of the one before it
  Clock::duration step_time = {};     // all steps so far
  Clock::duration last_step_time = {};
  StepPace pace;
  bool running = true;
};

Engine::Impl::Impl(std::unique_ptr<Model> model_, std::unique_ptr<Device> device_, const EngineConfig& config_,
                   PlanSenders plan_senders, const RecordProgress& progress, MakeLookahead make_lookahead_)
    : config(checked(config_, model_->spec())),
      device(std::move(device_)),
      model(std::move(model_)),
      inbox(config.max_running + config.max_waiting, device->pool().progress()),
      grammars(model->spec().vocab_size, std::chrono::milliseconds(config.mask_limit_ms), [this] { inbox.wake(); }),
      scheduler(scheduler_options(config)),
      executor(*model, *device, KvCache(*device, model->spec(), config.kv_dtype, config.num_pages, config.page_size)),
      publisher(std::move(plan_senders)),
      make_lookahead(std::move(make_lookahead_)) {
  if (config.report_blocks) scheduler.report_blocks(block_events, device->has_own_memory() ? "GPU" : "CPU");
  const Executor::Prepared prepared =
      executor.prepare(step_limits(config, model->spec()), config.cuda_graphs, progress);
  if (device->has_own_memory()) {
    memory = {
        .workspace = prepared.workspace_bytes, .graphs = prepared.graph_bytes, .free = device->available_memory()};
  }
  if (config.num_host_pages > 0) open_host_tier();
  deliver();  // the first statistics
}

void Engine::Impl::open_host_tier() {
  const double seconds = executor.open_host_tier(config.num_host_pages, [this] { inbox.wake(); });
  scheduler.set_host_page_seconds(seconds);
  scheduler.host_pages_ready(executor.host_pages_ready());
  memory.host_bytes_per_second = static_cast<double>(bytes_per_page()) / seconds;
}

std::int64_t Engine::Impl::bytes_per_page() const {
  return KvCache::bytes_per_page(model->spec(), config.kv_dtype, config.page_size, device->num_ranks());
}

// Whatever happened, the device may still work on a step.
Engine::Impl::~Impl() {
  try {
    device->synchronize();
  } catch (const std::exception& error) {
    log_line(LogLevel::error, std::string("the device's last step failed: ") + error.what());
  }
}

void Engine::Impl::run() noexcept {
  std::string what;
  try {
    while (running) {
      take_commands();
      if (config.num_host_pages > 0) note_copies();
      if (!grammars.empty()) take_grammars();
      if (running) step();
      while (!running && scheduler.num_in_flight() > 0) finish_step();
      deliver();
    }
    publisher.shut_down();
  } catch (const RankFailure& error) {
    what = error.what();
    const std::lock_guard lock(status_mutex);
    blamed_rank = error.rank();
  } catch (const std::exception& error) {
    what = error.what();
    if (what.empty()) what = "an exception without a message";
  } catch (...) {
    what = "an exception of an unknown type";
  }
  end_all(what);
}

// When the next step is planned if nobody comes before; none where there is nothing to do. While the device runs a long
// step there is time until somebody who comes would wait for one more.
std::optional<Clock::time_point> Engine::Impl::next_plan() const {
  if (scheduler.num_in_flight() > 0) return busy_since + pace.next_after(scheduler.oldest());
  if (scheduler.may_plan()) return Clock::time_point{};
  return grammars.empty() ? std::nullopt
                          : std::optional(Clock::now() + std::chrono::milliseconds(config.mask_limit_ms));
}

void Engine::Impl::take_commands() {
  running = inbox.take(next_plan(), commands);
  for (Command& command : commands) {
    if (auto* submission = std::get_if<Submission>(&command)) {
      admit(std::move(*submission));
    } else {
      const std::optional<SequenceId> sequence = live.find(std::get<Abort>(command).id);
      if (sequence) abort(*sequence);  // else finished since
    }
  }
  if (running) return;
  for (const SequenceId id : live.sequences()) abort(id);
}

// What the host tier's copies have come to since the last turn.
void Engine::Impl::note_copies() {
  const std::uint64_t before = scheduler.host()->num_done();
  scheduler.copies_done(executor.copies_done());
  scheduler.host_pages_ready(executor.host_pages_ready());
  if (scheduler.host()->num_done() > before) device->pool().progress().advance();
}

void Engine::Impl::admit(Submission submission) {
  Request& request = submission.request;
  const bool has_grammar = !request.grammar.empty() && request.num_to_come() > 0;
  const bool has_budget = request.thought.max_tokens >= 0 && !request.thought.states.empty();
  const bool may_look = make_lookahead && !has_grammar && !has_budget;
  std::unique_ptr<Lookahead> lookahead = may_look ? make_lookahead(request) : nullptr;
  const bool needs_token = has_grammar || lookahead != nullptr || needs_latest_token(request.sampling);
  std::vector<std::int32_t> stop_tokens = stop_tokens_of(request, model->spec());
  const SequenceId id = live.add(request, stop_tokens, submission.time);
  if (lookahead) lookaheads.emplace(id, SequenceLookahead{std::move(lookahead), !depends_on_output(request.sampling)});
  const auto prompt_end = request.prompt.end() - request.num_resumed;
  const bool has_counts = uses_penalties(request.sampling);
  const std::int64_t num_hidden = request.pooling.num_rows(std::ssize(request.prompt));
  const bool counts_prompt = request.sampling.repetition_penalty != 1.0f;
  SequenceSampling sampling{.params = std::move(request.sampling),
                            .prompt_len = prompt_end - request.prompt.begin(),
                            .prompt = {counts_prompt ? request.prompt.begin() : prompt_end, prompt_end},
                            .resumed = {prompt_end, request.prompt.end()},
                            .min_tokens = request.min_tokens,
                            .stop_tokens = std::move(stop_tokens),
                            .logprobs = request.logprobs,
                            .prompt_logprobs = request.prompt_logprobs};
  NewSequence sequence{.id = id,
                       .prompt = std::move(request.prompt),
                       .max_tokens = request.num_to_come(),
                       .score_prompt = request.prompt_logprobs >= 0,
                       .needs_token = needs_token,
                       .has_counts = has_counts,
                       .num_hidden = num_hidden,
                       .space = {.salt = request.prefix_salt},
                       .standing = request.standing,
                       .arrived = submission.time};
  // Those whose tokens have something said of them draw each, and recorded steps have one row per sequence.
  const bool takes_forced = request.logprobs < 0 && !has_budget && sampling.params.allowed_token_ids.empty() &&
                            !(config.cuda_graphs && device->records_steps());
  if (has_budget) {
    const auto entry = thoughts.try_emplace(id, LimitedThought{Thought(std::move(request.thought)), needs_token}).first;
    entry->second.thought.note(sampling.resumed);
  }
  if (!has_grammar) return enter(id, {std::move(sampling), std::move(sequence)});
  grammars.begin(id, {.text = std::move(request.grammar),
                      .resumed = sampling.resumed,
                      .allowed = sampling.params.allowed_token_ids,
                      .ends_late = request.ignore_eos,
                      .takes_forced = takes_forced});
  newcomers.emplace(id, Newcomer{std::move(sampling), std::move(sequence)});
}

void Engine::Impl::enter(SequenceId id, Newcomer newcomer) {
  publisher.add(id, newcomer.sampling);
  executor.add(id, std::move(newcomer.sampling));
  scheduler.add(std::move(newcomer.sequence));
  if (!thoughts.empty() && thoughts.contains(id)) lead_thought(id);
}

void Engine::Impl::set_mask(SequenceId id, std::span<const std::uint32_t> words) {
  publisher.mask(id, words);
  executor.mask(id, words);
}

// Those of the step's sequences whose thoughts have a budget have new tokens.
void Engine::Impl::note_thoughts(const StepPlan& plan) {
  for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
    const SequenceStep& part = plan.sequences[i];
    if (part.num_draws == 0) continue;
    const auto entry = thoughts.find(part.id);
    if (entry == thoughts.end()) continue;
    entry->second.thought.note(drawn.of(i));
    lead_thought(part.id);
  }
}

// Has the sequence draw what closes its thought, where that is due. Until shortly before, it runs ahead as others do.
// Where it has a grammar, take_grammar() does the rest when the next mask is there.
void Engine::Impl::lead_thought(SequenceId id) {
  LimitedThought& limited = thoughts.at(id);
  const Thought& thought = limited.thought;
  scheduler.need_token(id, limited.needs_token || thought.is_near_end());
  if (!grammars.contains(id)) {
    const std::span<const std::int32_t> closing = thought.closing();
    if (!closing.empty()) {
      set_mask(id, mask_of(closing.first(1), model->spec().vocab_size));
      limited.has_mask = true;
    } else if (limited.has_mask) {
      set_mask(id, {});
    }
  }
  if (thought.is_over()) thoughts.erase(id);
}

void Engine::Impl::take_grammars() {
  grammars.take(grammar_results);
  for (GrammarResult& result : grammar_results) {
    if (grammars.contains(result.id)) take_grammar(std::move(result));
  }
  if (!grammar_results.empty()) device->pool().progress().advance();
  grammar_results.clear();
}

// What the grammar of a live sequence says of its next token.
void Engine::Impl::take_grammar(GrammarResult result) {
  const SequenceId id = result.id;
  if (!result.forced.empty() && !give(id, result.forced)) return;
  if (result.is_complete || !result.error.empty()) {
    const Clock::time_point now = Clock::now();
    if (result.is_complete) {
      outputs.push_back(live.stop(id, grammars.end_token(), now));
    } else {
      outputs.push_back(live.end(id, FinishReason::error, now));
      outputs.back().error_code = ErrorCode::invalid_request;
      outputs.back().error = std::move(result.error);
    }
    ended.push_back(outputs.back().id);
    return release(id);
  }
  if (auto newcomer = newcomers.extract(id)) {
    enter(id, std::move(newcomer.mapped()));
  } else {
    scheduler.hold(id, false);
  }
  const auto limited = thoughts.find(id);
  if (limited != thoughts.end()) {
    Thought& thought = limited->second.thought;
    const auto may_stand = [&](std::int32_t token) { return mask_allows(result.mask, token); };
    thought.pass_to(may_stand);
    const std::span<const std::int32_t> closing = thought.closing();
    if (!closing.empty() && may_stand(closing.front())) {
      result.mask = mask_of(closing.first(1), model->spec().vocab_size);
    }
  }
  set_mask(id, result.mask);
}

// Those of the step's sequences that have a grammar have new tokens: no step computes them before the next mask.
void Engine::Impl::advance_grammars(const StepPlan& plan) {
  advances.clear();
  for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
    const SequenceStep& part = plan.sequences[i];
    if (part.num_draws == 0 || !grammars.contains(part.id)) continue;
    scheduler.hold(part.id, true);
    advances.push_back({part.id, drawn.of(i)});
  }
  if (!advances.empty()) grammars.advance(advances);
}

void Engine::Impl::abort(SequenceId id) {
  outputs.push_back(live.end(id, FinishReason::abort, Clock::now()));
  ended.push_back(outputs.back().id);
  release(id);
}

// Launches one step. When the pipeline is full (1 step in flight on a device that runs ahead, elsewhere 0), collects
// the oldest step's results.
void Engine::Impl::step() {
  const std::size_t depth = config.overlap ? executor.depth() : 0;
  const bool launched = launch_step();
  if (scheduler.num_in_flight() > (launched ? depth : 0)) finish_step();
}

// Returns false when no sequence can be computed, or none before the steps in flight are done.
bool Engine::Impl::launch_step() {
  if (!grammars.empty()) {
    grammars.wait(Clock::now() + std::max(kMaskPatience, last_step_time / 8));
    take_grammars();
  }
  const Clock::time_point now = Clock::now();
  const StepPlan& plan = scheduler.plan(now);
  for (const SequenceId id : scheduler.preempted()) give_back_counts(id);
  if (!plan.empty()) {
    if (scheduler.num_in_flight() == 1) busy_since = now;
    live.mark_started(plan, now);
    publisher.step(plan);
    executor.launch(plan);
  }
  for (const TierCopies* copies : scheduler.tier_copies()) {
    publisher.copy(*copies, static_cast<std::uint32_t>(scheduler.num_in_flight()));
    executor.copy(*copies);
  }
  return !plan.empty();
}

// A preempted sequence with penalties has no counts on the devices: they are made again of its tokens when it goes on.
void Engine::Impl::give_back_counts(SequenceId id) {
  const SequenceSampling& sampling = executor.sampling(id);
  if (!uses_penalties(sampling.params)) return;
  const Sequence& sequence = scheduler.sequence(id);
  std::span<const std::int32_t> output(sequence.tokens);
  if (sequence.is_pending()) output = output.first(output.size() - 1);  // it goes on already, and this step draws it
  output = output.subspan(static_cast<std::size_t>(sampling.prompt_len));
  publisher.pause(id, output);
  executor.pause(id, output);
}

void Engine::Impl::finish_step() {
  StepOutputs results = executor.take();
  const Clock::time_point now = Clock::now();
  ++num_steps;
  const Clock::duration time = now - std::exchange(busy_since, now);
  step_time += time;
  last_step_time = time;
  const StepPlan& plan = scheduler.oldest();
  pace.learn(plan, time);
  draws.clear();
  for (std::size_t i = 0; i < results.tokens.size(); ++i) {
    if (plan.targets[i].token == LogitTarget::kSample) draws.push_back(results.tokens[i].token);
  }
  accept_drafts(plan, draws, drawn);
  scheduler.complete(drawn, std::chrono::duration<double>(time).count());
  take_over(live.collect(plan, drawn, results, now));
  if (!thoughts.empty()) note_thoughts(plan);
  if (!grammars.empty()) advance_grammars(plan);
  if (!lookaheads.empty()) {
    for (const SequenceStep& part : plan.sequences) {
      if (part.num_draws > 0 && lookaheads.contains(part.id)) look_ahead(part.id);
    }
  }
  if (config.check_invariants) scheduler.check();
}

// A sequence with a lookahead has new tokens, all known: appends those that are sure to come, and proposes drafts.
void Engine::Impl::look_ahead(SequenceId id) {
  const auto& [lookahead, may_draft] = lookaheads.at(id);
  const Sequence& sequence = scheduler.sequence(id);
  Lookahead::Ahead ahead = lookahead->look(sequence.tokens);
  if (!ahead.forced.empty() && !give(id, ahead.forced)) return;
  if (may_draft) scheduler.propose(id, ahead.drafts);
}

// A sequence gets tokens that nobody draws, as many of them as it may have. Returns whether it goes on.
bool Engine::Impl::give(SequenceId id, std::span<const std::int32_t> tokens) {
  const Sequence& sequence = scheduler.sequence(id);
  tokens = tokens.first(std::min(tokens.size(), static_cast<std::size_t>(sequence.max_len - sequence.len())));
  scheduler.append(id, tokens);
  publisher.append(id, tokens);
  executor.append(id, tokens);
  LiveRequests::Collected collected = live.append(id, tokens, Clock::now());
  const bool has_ended = !collected.ended.empty();
  take_over(std::move(collected));
  return !has_ended;
}

void Engine::Impl::take_over(LiveRequests::Collected collected) {
  for (const SequenceId id : collected.ended) release(id);
  for (RequestOutput& output : collected.outputs) {
    if (output.finish != FinishReason::none) ended.push_back(output.id);
    outputs.push_back(std::move(output));
  }
}

// The one way out for a sequence: its pages and its place on the ranks.
void Engine::Impl::release(SequenceId id) {
  if (!grammars.empty()) grammars.end(id);
  if (!thoughts.empty()) thoughts.erase(id);
  if (newcomers.erase(id) > 0) return;
  scheduler.remove(id);
  publisher.remove(id);
  executor.remove(id);
  if (!lookaheads.empty()) lookaheads.erase(id);
}

void Engine::Impl::add_host_stats() {
  const HostTier& host = *scheduler.host();
  const auto bytes = static_cast<std::uint64_t>(bytes_per_page());
  stats.host_pages_ready = host.num_ready();
  stats.host_pages_cached = host.tree().num_pages();
  stats.host_queries = scheduler.prefix_counts().host_queries;
  stats.host_hits = scheduler.prefix_counts().host_hits;
  stats.host_evictions = host.tree().num_evicted() * static_cast<std::uint64_t>(config.page_size);
  stats.host_bytes_out = host.num_copied_out() * bytes;
  stats.host_bytes_in = host.num_copied_in() * bytes;
}

// The statistics contain what the outputs say, and ended ids are free again, before anybody can see the outputs.
void Engine::Impl::deliver() {
  {
    const std::lock_guard lock(status_mutex);
    stats = {.num_running = scheduler.num_running(),
             .num_waiting = scheduler.num_waiting() + std::ssize(newcomers),
             .waiting_by_priority = scheduler.queue().waiting_by_priority(),
             .pages_total = scheduler.pages().num_total(),
             .pages_free = scheduler.num_available_pages(),
             .pages_cached = scheduler.tree().num_pages(),
             .prefix_queries = scheduler.prefix_counts().queries,
             .prefix_hits = scheduler.prefix_counts().hits,
             .prefix_evictions = scheduler.tree().num_evicted() * static_cast<std::uint64_t>(config.page_size),
             .num_preemptions = scheduler.num_preemptions(),
             .num_steps = num_steps,
             .prompt_tokens = live.counts().prompt_tokens,
             .generated_tokens = live.counts().generated_tokens,
             .step_seconds = std::chrono::duration<double>(step_time).count(),
             .device_busy_seconds = device->busy_seconds()};
    if (scheduler.host()) add_host_stats();
  }
  inbox.forget(ended);
  ended.clear();
  completions.publish(std::exchange(outputs, {}));
}

// Refuses new requests and ends all live ones: with an error after a failure, which leaves the scheduler as it is, else
// as aborted.
void Engine::Impl::end_all(const std::string& what) {
  const bool failed = !what.empty();
  const std::string message = "the engine failed: " + what;
  if (failed) {
    const std::lock_guard lock(status_mutex);
    failure = what;
    stats.num_running = stats.num_waiting = 0;
    stats.waiting_by_priority.clear();
  }
  std::vector<RequestOutput> last = std::exchange(outputs, {});  // made before it went wrong, as good as ever
  inbox.forget(ended);
  for (const std::uint64_t id : inbox.close()) {
    last.push_back(failed ? error_output(id, ErrorCode::engine_failure, message)
                          : RequestOutput{.id = id, .finish = FinishReason::abort});
  }
  completions.publish(std::move(last));
}

Engine::Engine(std::unique_ptr<Model> model, std::unique_ptr<Device> device, const EngineConfig& config,
               PlanSenders plan_senders, const RecordProgress& progress, MakeLookahead make_lookahead)
    : impl_(std::make_unique<Impl>(std::move(model), std::move(device), config, std::move(plan_senders), progress,
                                   std::move(make_lookahead))) {}

Engine::~Engine() {
  stop();
}

void Engine::start() {
  const std::lock_guard lock(impl_->lifecycle_mutex);
  MINISGL_CHECK(!impl_->thread.joinable() && !impl_->stopped, "an engine starts once");
  impl_->inbox.show_work();
  impl_->thread = start_quiet_thread([impl = impl_.get()] {
    pthread_setname_np(pthread_self(), "minisgl-engine");
    impl->run();
  });
}

void Engine::stop() {
  const std::lock_guard lock(impl_->lifecycle_mutex);
  if (std::exchange(impl_->stopped, true)) return;
  impl_->inbox.request_stop();
  if (impl_->thread.joinable()) {
    impl_->thread.join();
  } else {
    impl_->run();  // never started: nobody else ends what was submitted
  }
  impl_->executor.close_host_tier();  // memory that others may need, whoever still has the engine
}

void Engine::open_grammars(std::string library, GrammarVocabulary vocabulary) {
  impl_->grammars.open(std::move(library), std::move(vocabulary));
}

void Engine::refuse_grammars(std::string reason) {
  impl_->grammars.refuse(std::move(reason));
}

void Engine::submit(Request request) {
  const std::uint64_t id = request.id;
  if (std::optional<RequestFault> fault = find_fault(request, spec(), config())) {
    impl_->completions.publish({error_output(id, fault->code, std::move(fault->message))});
    return;
  }
  switch (impl_->inbox.submit(std::move(request))) {
    case Inbox::Answer::accepted: return;
    case Inbox::Answer::duplicate:
      impl_->completions.publish(
          {error_output(id, ErrorCode::invalid_request, concat("a request with id ", id, " is live"))});
      return;
    case Inbox::Answer::full:
      impl_->completions.publish({error_output(
          id, ErrorCode::queue_full,
          concat("the queue is full: ", config().max_running, " requests run and ", config().max_waiting, " wait"))});
      return;
    case Inbox::Answer::closed:
      const std::string what = failure();
      impl_->completions.publish({error_output(id, ErrorCode::engine_failure,
                                               what.empty() ? "the engine is stopped" : "the engine failed: " + what)});
      return;
  }
}

void Engine::abort(std::uint64_t id) {
  impl_->inbox.abort(id);
}

int Engine::event_fd() const {
  return impl_->completions.event_fd();
}

std::vector<RequestOutput> Engine::take_outputs() {
  return impl_->completions.take();
}

std::vector<BlockEvent> Engine::take_block_events() {
  return impl_->block_events.take();
}

EngineStats Engine::stats() const {
  const std::int64_t num_submissions = impl_->inbox.num_submissions();
  const std::lock_guard lock(impl_->status_mutex);
  EngineStats stats = impl_->stats;
  stats.num_waiting += num_submissions;
  return stats;
}

const ModelSpec& Engine::spec() const {
  return impl_->model->spec();
}

const EngineConfig& Engine::config() const {
  return impl_->config;
}

const EngineMemory& Engine::memory() const {
  return impl_->memory;
}

std::string Engine::failure() const {
  const std::lock_guard lock(impl_->status_mutex);
  return impl_->failure;
}

int Engine::blamed_rank() const {
  const std::lock_guard lock(impl_->status_mutex);
  return impl_->blamed_rank;
}

}  // namespace minisgl
