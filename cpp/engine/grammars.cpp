// Threads by what they do: many for masks that a step waits for, one for those of slow sequences, and one that reads
// grammars.
#include "engine/grammars.h"

#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <exception>
#include <optional>

#include "core/error.h"
#include "core/host_limits.h"
#include "core/quiet_thread.h"
#include "engine/token_mask.h"

namespace minisgl {
namespace {

constexpr int kMostPromptThreads = 8;
constexpr std::size_t kMostRead = 16;                         // grammars that are kept
constexpr std::size_t kMostReadBytes = std::size_t{1} << 18;  // longer ones aren't

constexpr std::size_t kMostForced = 64;  // tokens; more come with the next result

// What a process with half of it has compiled (text/grammar_compiler.py) doesn't overflow it.
constexpr std::size_t kLeastStackBytes = std::size_t{2} << 20;

constexpr int kNiceness = 10;  // of the thread for slow sequences: a tenth of a processor where others need it

std::chrono::nanoseconds processor_time() {  // of this thread
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

// Of a thread that is started now. InputError where that is too little for a grammar.
void check_stack() {
  pthread_attr_t attributes;
  std::size_t size = 0;
  if (pthread_getattr_default_np(&attributes) != 0) return;
  pthread_attr_getstacksize(&attributes, &size);
  pthread_attr_destroy(&attributes);
  if (size >= kLeastStackBytes) return;
  throw InputError(concat("threads have a stack of ", size >> 10, " KiB, and grammars need ", kLeastStackBytes >> 10,
                          ": raise the limit (ulimit -s)"));
}

bool is_empty(std::span<const std::uint32_t> mask) {
  return std::ranges::all_of(mask, [](std::uint32_t word) { return word == 0; });
}

}  // namespace

struct Grammars::Tracked {
  SequenceId id;
  NewGrammar grammar;
  std::unique_ptr<GrammarMatcher> matcher = {};  // made by the reading thread
  std::vector<std::int32_t> tokens = {};         // to be consumed
  bool is_slow = false, is_waited_for = false;
  bool has_ended = false, is_too_slow = false;
  std::optional<Clock::time_point> began = {};  // its mask, where a thread is at it
};

Grammars::Grammars(std::int64_t vocab_size, std::chrono::milliseconds mask_limit, std::function<void()> on_late)
    : vocab_size_(vocab_size), mask_limit_(mask_limit), on_late_(std::move(on_late)) {}

Grammars::~Grammars() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    for (const Job& job : running_) {
      if (job->matcher) job->matcher->cancel();
    }
  }
  for (Queue& queue : queues_) queue.has_jobs.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Grammars::open(std::string library, GrammarVocabulary vocabulary) {
  const std::lock_guard lock(mutex_);
  MINISGL_CHECK(!is_open_, "grammars are opened once");
  check_stack();
  library_ = std::move(library);
  vocabulary_ = std::move(vocabulary);
  start_threads(std::clamp(usable_processors(), 1, kMostPromptThreads));
}

void Grammars::refuse(std::string reason) {
  const std::lock_guard lock(mutex_);
  MINISGL_CHECK(!is_open_, "grammars are opened once");
  refusal_ = std::move(reason);
  start_threads(0);
}

void Grammars::start_threads(int num_prompt) {
  for (int i = 0; i < num_prompt; ++i) start_thread(kPrompt);
  if (num_prompt > 0) start_thread(kSlowOnes);
  start_thread(kReading);
  is_open_ = true;
}

void Grammars::start_thread(Lane lane) {
  threads_.push_back(start_quiet_thread([this, lane] {
    pthread_setname_np(pthread_self(), "minisgl-grammar");
    if (lane == kSlowOnes) setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNiceness);
    run(lane);
  }));
}

// The lock is held.
void Grammars::put(Lane lane, Job job) {
  queues_[lane].jobs.push_back(std::move(job));
  queues_[lane].has_jobs.notify_one();
}

void Grammars::begin(SequenceId id, NewGrammar grammar) {
  const Job job = std::make_shared<Tracked>(Tracked{.id = id, .grammar = std::move(grammar)});
  job->tokens = std::move(job->grammar.resumed);
  tracked_.emplace(id, job);
  const std::lock_guard lock(mutex_);
  put(kReading, job);
}

// Under one lock, and threads are woken once: a step may have hundreds of them.
void Grammars::advance(std::span<const Advance> sequences) {
  std::array<std::size_t, kNumLanes> num_put{};
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, tokens] : sequences) {
      const Job& job = tracked_.at(id);
      job->tokens.assign(tokens.begin(), tokens.end());
      job->is_waited_for = !job->is_slow;
      if (job->is_waited_for) ++num_prompt_;
      const Lane lane = job->is_slow ? kSlowOnes : kPrompt;
      queues_[lane].jobs.push_back(job);
      ++num_put[lane];
    }
  }
  for (const Lane lane : {kPrompt, kSlowOnes}) {
    if (num_put[lane] == 1) queues_[lane].has_jobs.notify_one();
    if (num_put[lane] > 1) queues_[lane].has_jobs.notify_all();
  }
}

// A matcher may take a while to be freed, which is work for the reading thread, too.
void Grammars::end(SequenceId id) {
  const auto entry = tracked_.find(id);
  if (entry == tracked_.end()) return;
  Job job = std::move(entry->second);
  tracked_.erase(entry);
  const std::lock_guard lock(mutex_);
  job->has_ended = true;
  if (std::exchange(job->is_waited_for, false)) --num_prompt_;
  if (job->began && job->matcher) job->matcher->cancel();
  put(kReading, std::move(job));
}

void Grammars::wait(Clock::time_point until) {
  std::unique_lock lock(mutex_);
  is_waited_for_ = true;
  has_results_.wait_until(lock, until, [this] { return num_prompt_ == 0; });
  is_waited_for_ = false;
  if (std::exchange(num_prompt_, 0) == 0) return;
  for (const auto& [id, job] : tracked_) job->is_waited_for = false;
}

void Grammars::take(std::vector<GrammarResult>& results) {
  const std::lock_guard lock(mutex_);
  std::ranges::move(results_, std::back_inserter(results));
  results_.clear();
  for (const Job& job : running_) {
    if (job->is_too_slow || !job->matcher || Clock::now() - *job->began < mask_limit_) continue;
    job->is_too_slow = true;
    job->matcher->cancel();
  }
}

std::int32_t Grammars::end_token() const {
  const std::lock_guard lock(mutex_);
  MINISGL_CHECK(tokenizer_, "no grammar was read");
  return tokenizer_->ends().front();
}

// The lane's next one; null at the end.
Grammars::Job Grammars::next_job(Lane lane, std::unique_lock<std::mutex>& lock) {
  Queue& queue = queues_[lane];
  queue.has_jobs.wait(lock, [&] { return stopping_ || !queue.jobs.empty(); });
  if (stopping_) return nullptr;
  Job job = std::move(queue.jobs.front());
  queue.jobs.pop_front();
  return job;
}

void Grammars::run(Lane lane) {
  std::unique_lock lock(mutex_);
  if (lane == kReading && refusal_.empty()) open_tokenizer(lock);
  while (Job job = next_job(lane, lock)) {
    GrammarResult result{.id = job->id};
    if (!job->has_ended) {
      running_.push_back(job);
      job->began = Clock::now();
      lock.unlock();
      const std::chrono::nanoseconds before = processor_time();
      try {
        work(*job, result);
      } catch (const std::exception& error) {
        result.error = error.what();
      }
      const bool is_slow = processor_time() - before > kSlow;
      lock.lock();
      job->is_slow = lane != kReading && is_slow;
      job->began.reset();
      std::erase(running_, job);
      if (job->is_too_slow) {
        result.error =
            concat("the grammar takes more than ", mask_limit_.count(), " ms for a token, the most that it may");
      }
      if (!job->has_ended) results_.push_back(std::move(result));
    }
    if (std::exchange(job->is_waited_for, false)) --num_prompt_;
    const bool is_waited_for = is_waited_for_, is_last = num_prompt_ == 0;
    lock.unlock();
    job.reset();
    if (!is_waited_for) {
      on_late_();
    } else if (is_last) {
      has_results_.notify_one();
    }
    lock.lock();
  }
}

// Takes a moment, once.
void Grammars::open_tokenizer(std::unique_lock<std::mutex>& lock) {
  lock.unlock();
  std::shared_ptr<const GrammarTokenizer> tokenizer;
  std::string refusal;
  try {
    tokenizer = std::make_shared<const GrammarTokenizer>(LlguidanceLibrary::load(library_), vocabulary_, vocab_size_);
  } catch (const std::exception& error) {
    refusal = error.what();
  }
  lock.lock();
  tokenizer_ = std::move(tokenizer);
  refusal_ = std::move(refusal);
  if (vocabulary_.merges.empty()) free_tokenizer_ = tokenizer_;
  vocabulary_.merges = {};
  if (!tokenizer_ || free_tokenizer_) vocabulary_ = {};
}

// Few requests need it: it is made, which takes a moment, for the first that does.
const std::shared_ptr<const GrammarTokenizer>& Grammars::free_tokenizer() {
  if (!free_tokenizer_) {
    free_tokenizer_ = std::make_shared<const GrammarTokenizer>(tokenizer_->library(), vocabulary_, vocab_size_);
    vocabulary_ = {};
  }
  return free_tokenizer_;
}

void Grammars::work(Tracked& tracked, GrammarResult& result) {
  // The prompt's last row draws a token.
  const bool takes_forced = tracked.matcher && tracked.grammar.takes_forced;
  if (!tracked.matcher) {
    std::unique_ptr<GrammarMatcher> matcher = read(tracked.grammar);
    const std::lock_guard lock(mutex_);
    tracked.matcher = std::move(matcher);
    tracked.grammar.text.clear();
    tracked.began = Clock::now();  // reading has limits of its own
  }
  if (!tracked.tokens.empty()) tracked.matcher->consume(tracked.tokens);
  while (takes_forced && result.forced.size() < kMostForced) {
    const std::span<const std::int32_t> forced = tracked.matcher->forced();
    if (forced.empty()) break;
    result.forced.insert(result.forced.end(), forced.begin(), forced.end());
    tracked.matcher->consume(forced);
  }
  result.is_complete = tracked.matcher->is_complete();
  if (result.is_complete) return;
  tracked.matcher->compute_mask(result.mask);
  limit(tracked.grammar, result.mask);
}

// A grammar that was read lately isn't read again.
std::unique_ptr<GrammarMatcher> Grammars::read(const NewGrammar& grammar) {
  if (!refusal_.empty()) throw GrammarError(concat("grammars can't be served: ", refusal_));
  // The model's own tokens of a text may not be among those that are allowed.
  const bool is_free = !grammar.allowed.empty();
  const std::string& text = grammar.text;
  const auto known = std::ranges::find_if(
      read_, [&](const ReadGrammar& entry) { return entry.is_free == is_free && entry.text == text; });
  if (known != read_.end()) {
    read_.splice(read_.begin(), read_, known);
    return known->matcher->clone();
  }
  auto matcher = std::make_unique<GrammarMatcher>(is_free ? free_tokenizer() : tokenizer_, text);
  if (text.size() > kMostReadBytes) return matcher;
  read_.push_front({text, is_free, matcher->clone()});
  if (read_.size() > kMostRead) read_.pop_back();
  return matcher;
}

void Grammars::limit(const NewGrammar& grammar, std::vector<std::uint32_t>& mask) const {
  if (!grammar.allowed.empty()) {
    const std::vector<std::uint32_t> allowed = mask_of(grammar.allowed, vocab_size_);
    for (std::size_t i = 0; i < mask.size(); ++i) mask[i] &= allowed[i];
    if (is_empty(mask)) {
      throw GrammarError("the grammar can't go on: it allows none of the tokens of allowed_token_ids");
    }
  }
  if (!grammar.ends_late) return;
  std::vector<std::uint32_t> others = mask;
  for (const std::int32_t end : tokenizer_->ends()) {
    others[static_cast<std::size_t>(end) / 32] &= ~(1u << (static_cast<unsigned>(end) % 32));
  }
  if (!is_empty(others)) mask = std::move(others);
}

}  // namespace minisgl
