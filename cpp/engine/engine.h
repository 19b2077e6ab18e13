// The engine: one thread that owns scheduler, cache and model. Everybody else submits, aborts and drains.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/plan_channel.h"
#include "kernels/ops.h"
#include "models/decoder.h"

namespace minisgl {

#ifdef NDEBUG
inline constexpr bool is_debug_build = false;
#else
inline constexpr bool is_debug_build = true;
#endif

struct EngineOptions {
  std::int64_t num_pages = 0;  // at least one sequence of max_model_len must fit
  int page_size = 16;
  DType kv_dtype = DType::f16;
  std::int64_t max_model_len = 0;          // prompt + output tokens of one request
  std::int64_t max_running = 256;          // sequences in one step
  std::int64_t max_batch_tokens = 512;     // rows in one step: decode tokens first, prefill chunks in the rest
  std::int64_t max_waiting = 4096;         // live requests beyond max_running; one more is refused
  bool cuda_graphs = true;                 // where the device has them: decode steps are recorded at start
  bool overlap = true;                     // where the device runs ahead: a step is planned while another runs
  bool check_invariants = is_debug_build;  // verify scheduler and pages after every step, O(pages)
};

// progress(decode steps recorded, to be recorded), called while an engine is made.
using RecordProgress = std::function<void(std::int64_t, std::int64_t)>;

// Bytes of a device whose memory is the engine's alone, as measured while it was made; elsewhere 0.
struct EngineMemory {
  std::int64_t workspace = 0;  // of the largest step
  std::int64_t graphs = 0;     // recorded steps
  std::int64_t free = 0;       // what is left
};

struct Request {
  std::uint64_t id = 0;  // unique among live requests, chosen by the caller
  std::vector<std::int32_t> prompt;
  SamplingParams sampling;
  std::int64_t max_tokens = 16;
  std::int64_t min_tokens = 0;  // stop tokens are banned before that many
  bool ignore_eos = false;
  std::vector<std::int32_t> stop_token_ids;
  std::int32_t logprobs = -1;         // alternatives reported with each token; -1: no logprobs
  std::int32_t prompt_logprobs = -1;  // the same for each prompt token
};

enum class FinishReason : std::uint8_t { none, stop, length, abort, error };
enum class ErrorCode : std::uint8_t { none, invalid_request, too_long, queue_full, engine_failure };

// What one step made for one request. The stop token itself is delivered as the last token (the text leaves it out).
struct RequestOutput {
  std::uint64_t id;
  std::vector<TokenOutput> tokens = {};
  bool has_logprobs = false;  // whether the tokens carry log probabilities
  FinishReason finish = FinishReason::none;
  ErrorCode error_code = ErrorCode::none;         // with FinishReason::error
  std::string error = {};                         // with FinishReason::error: what was wrong, with the value
  std::vector<TokenOutput> prompt_logprobs = {};  // once, when prefill ends; entry 0 has no logprob (NaN)
  // Seconds, with the finish: waiting for the first step, from there to the first token, from there to the end.
  double queue_seconds = 0, prefill_seconds = 0, decode_seconds = 0;
};

struct EngineStats {
  std::int64_t num_running = 0, num_waiting = 0;
  std::int64_t pages_total = 0, pages_free = 0;
  std::uint64_t num_preemptions = 0, num_steps = 0, prompt_tokens = 0, generated_tokens = 0;
  double device_busy_seconds = 0;  // of these steps; see Ops::busy_seconds
};

// The way to the other ranks of a group; none for a single rank.
using Followers = std::vector<std::unique_ptr<PlanSender>>;

class Engine {
 public:
  // `device` is the one that `model` was loaded on.
  Engine(std::unique_ptr<Model> model, std::unique_ptr<Ops> device, const EngineOptions& options,
         Followers followers = {}, const RecordProgress& progress = {});
  ~Engine();  // stops

  // Starts the engine thread; once. Requests submitted before wait.
  void start();
  // Ends the engine thread after the step at hand; every live request is finished with `abort`, and what is submitted
  // later with `error`. Idempotent, from any thread.
  void stop();

  // Thread-safe, never blocks on a step. A request that can't be served (too long, bad ids, duplicate id, queue full)
  // comes back as an output with FinishReason::error; a duplicate's does not touch the live request of that id.
  void submit(Request request);
  // Takes effect after the step at hand: one last output with FinishReason::abort, unless that step finishes the
  // request. Unknown and finished ids are ignored.
  void abort(std::uint64_t id);

  // Readable when outputs wait. drain() takes them all and resets it.
  int event_fd() const;
  std::vector<RequestOutput> drain();
  EngineStats stats() const;

  const ModelSpec& spec() const;
  const EngineOptions& options() const;
  const EngineMemory& memory() const;
  // Set when the engine thread died of an exception: what it said. Live requests were finished with `error`.
  std::string failure() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace minisgl
