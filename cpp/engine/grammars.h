// Grammars of all sequences that have one: threads of their own read them and make the masks of the next tokens, while
// the device works and the engine thread goes on.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/grammar.h"
#include "sched/sequence.h"

namespace minisgl {

// A sequence's grammar, and what else limits its tokens.
struct NewGrammar {
  std::string text;                        // as GrammarMatcher's
  std::vector<std::int32_t> resumed = {};  // tokens that the answer has already
  std::vector<std::int32_t> allowed = {};  // nothing else may come, whatever the grammar allows; empty: anything
  bool ends_late = false;                  // an end token comes only where nothing else may
  bool takes_forced = false;               // tokens that are sure come without a mask, several at once
};

// What became of a sequence's latest tokens.
struct GrammarResult {
  SequenceId id;
  std::vector<std::int32_t> forced = {};  // tokens that come next without a draw
  std::vector<std::uint32_t> mask = {};   // [mask_words] of the token behind those
  bool is_complete = false;               // nothing but an end may follow
  std::string error = {};                 // why it can't go on
};

// open() and refuse() are for any thread, everything else for the engine thread. A sequence has one thing under way at
// a time.
class Grammars {
 public:
  using Clock = std::chrono::steady_clock;
  // A mask that takes more of a processor makes its sequence a slow one, for which no step waits.
  static constexpr std::chrono::milliseconds kSlow{5};

  // A mask that takes longer than `mask_limit` ends with an error: take() looks. `on_late` is called on another thread
  // when a result has come for which nobody waits.
  Grammars(std::int64_t vocab_size, std::chrono::milliseconds mask_limit, std::function<void()> on_late);
  ~Grammars();
  Grammars(const Grammars&) = delete;

  // What grammars need; once. What was begun before waits for it. `library` is llguidance's extension. InputError where
  // the system has no threads for it, or gives them little stack.
  void open(std::string library, GrammarVocabulary vocabulary);
  // In its place: no grammar can be served.
  void refuse(std::string reason);

  void begin(SequenceId id, NewGrammar grammar);
  // Each of these sequences has tokens more.
  struct Advance {
    SequenceId id;
    std::span<const std::int32_t> tokens;
  };
  void advance(std::span<const Advance> sequences);
  void end(SequenceId id);  // whatever is under way for it comes to nothing
  bool contains(SequenceId id) const { return tracked_.contains(id); }
  bool empty() const { return tracked_.empty(); }

  // Until the masks of all sequences that aren't slow are there, at most until that time. Those that are not come
  // later.
  void wait(Clock::time_point until);
  // Appends what has come since the last call.
  void take(std::vector<GrammarResult>& results);
  // The token that ends an answer; once there was a result.
  std::int32_t end_token() const;

 private:
  struct Tracked;
  using Job = std::shared_ptr<Tracked>;

  // Masks that steps wait for; those of slow sequences; grammars to be read, and matchers to be freed.
  enum Lane : std::uint8_t { kPrompt, kSlowOnes, kReading, kNumLanes };
  struct Queue {
    std::deque<Job> jobs;
    std::condition_variable has_jobs;
  };
  struct ReadGrammar {
    std::string text;
    bool is_free;  // any tokens of a text may write it
    std::unique_ptr<GrammarMatcher> matcher;
  };

  void start_threads(int num_prompt);
  void start_thread(Lane lane);
  void put(Lane lane, Job job);
  void run(Lane lane);
  Job next_job(Lane lane, std::unique_lock<std::mutex>& lock);
  void open_tokenizer(std::unique_lock<std::mutex>& lock);
  void work(Tracked& tracked, GrammarResult& result);
  const std::shared_ptr<const GrammarTokenizer>& free_tokenizer();
  std::unique_ptr<GrammarMatcher> read(const NewGrammar& grammar);
  void limit(const NewGrammar& grammar, std::vector<std::uint32_t>& mask) const;

  const std::int64_t vocab_size_;
  const std::chrono::milliseconds mask_limit_;
  const std::function<void()> on_late_;
  std::unordered_map<SequenceId, Job> tracked_;  // the engine thread's

  mutable std::mutex mutex_;  // guards what follows, up to the reading thread's
  std::array<Queue, kNumLanes> queues_;
  std::condition_variable has_results_;
  std::vector<Job> running_;
  std::int64_t num_prompt_ = 0;  // jobs that steps wait for, queued or running
  std::vector<GrammarResult> results_;
  bool is_open_ = false, is_waited_for_ = false, stopping_ = false;
  std::string library_, refusal_;
  std::vector<std::thread> threads_;
  std::shared_ptr<const GrammarTokenizer> tokenizer_;

  // The reading thread's, once open: the vocabulary until both tokenizers are made of it; the one without merges, by
  // which any tokens of a text are as good; and grammars that were read lately, the latest first.
  GrammarVocabulary vocabulary_;
  std::shared_ptr<const GrammarTokenizer> free_tokenizer_;
  std::list<ReadGrammar> read_;
};

}  // namespace minisgl
