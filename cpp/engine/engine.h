// The engine: one thread that owns scheduler, cache and model. Everybody else submits, aborts and takes outputs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cache/block_events.h"
#include "comm/plan_channel.h"
#include "engine/grammar.h"
#include "engine/lookahead.h"
#include "engine/options.h"
#include "engine/request.h"
#include "kernels/device.h"
#include "models/model.h"

namespace minisgl {

class Engine {
 public:
  // `device` is the one that `model` was loaded on. Without `make_lookahead` every token is drawn.
  Engine(std::unique_ptr<Model> model, std::unique_ptr<Device> device, const EngineConfig& config,
         PlanSenders plan_senders = {}, const RecordProgress& progress = {}, MakeLookahead make_lookahead = {});
  ~Engine();  // stops

  // Starts the engine thread; once. Requests submitted before wait.
  void start();
  // Ends the engine thread after the step at hand; every live request is finished with `abort`, and what is submitted
  // later with `error`. Idempotent, from any thread.
  void stop();

  // What requests with a grammar need: llguidance's extension and the model's vocabulary; or why there are none. One of
  // the two, once, from any thread; such requests wait for it.
  void open_grammars(std::string library, GrammarVocabulary vocabulary);
  void refuse_grammars(std::string reason);

  // Loads the adapter in the folder `path`, or keeps the one that has this number, which is above 0; requests may name
  // it then. From any thread, while others are served. Throws InputError. With several ranks each loads it.
  void load_adapter(std::int32_t id, const std::string& path);
  // No live request names it.
  void unload_adapter(std::int32_t id);

  // Thread-safe, never blocks on a step. A request that can't be served (too long, bad ids, duplicate id, queue full)
  // comes back as an output with FinishReason::error; a duplicate's does not touch the live request of that id.
  void submit(Request request);
  // Takes effect after the step at hand: one last output with FinishReason::abort, unless that step finishes the
  // request. Unknown and finished ids are ignored.
  void abort(std::uint64_t id);

  // Readable when outputs wait. take_outputs() takes them all and resets it.
  int event_fd() const;
  std::vector<RequestOutput> take_outputs();
  // What entered and left the prefix cache since the last call, with config().report_blocks; thread-safe. What an
  // output depends on is there before the output.
  std::vector<BlockEvent> take_block_events();
  EngineStats stats() const;

  const ModelSpec& spec() const;
  const EngineConfig& config() const;
  const EngineMemory& memory() const;
  // Set when the engine thread died of an exception: what it said. Live requests were finished with `error`.
  std::string failure() const;
  // The rank that the failure blames; -1 for none.
  int blamed_rank() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace minisgl
