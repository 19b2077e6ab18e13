// The engine's door: what others call, on their own threads. What the engine thread does is in engine_loop.cpp.
#include "engine/engine.h"

#include <pthread.h>

#include <mutex>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/quiet_thread.h"
#include "engine/adapters.h"
#include "engine/engine_loop.h"
#include "engine/validation.h"

namespace minisgl {
namespace {

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

}  // namespace

struct Engine::Impl {
  Impl(std::unique_ptr<Model> model, std::unique_ptr<Device> device, const EngineConfig& config,
       PlanSenders plan_senders, const RecordProgress& progress, MakeLookahead make_lookahead);

  const EngineConfig config;
  // The loop's executor works with both: members are destroyed from the last to the first.
  const std::unique_ptr<Device> device;
  const std::unique_ptr<Model> model;
  Adapters adapters;
  EngineDoors doors;
  EngineLoop loop;
  const EngineMemory memory;
  std::mutex lifecycle_mutex;  // start and stop, one at a time; guards the next two
  std::thread thread;
  bool stopped = false;
};

Engine::Impl::Impl(std::unique_ptr<Model> model_, std::unique_ptr<Device> device_, const EngineConfig& config_,
                   PlanSenders plan_senders, const RecordProgress& progress, MakeLookahead make_lookahead)
    : config(checked(config_, model_->spec())),
      device(std::move(device_)),
      model(std::move(model_)),
      doors(config, model->spec().vocab_size, device->pool().progress()),
      loop(*model, *device, config, doors, adapters, std::move(plan_senders), std::move(make_lookahead)),
      memory(loop.prepare(progress)) {}

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
  impl_->doors.inbox.show_work();
  impl_->thread = start_quiet_thread([impl = impl_.get()] {
    pthread_setname_np(pthread_self(), "minisgl-engine");
    impl->loop.run();
  });
}

void Engine::stop() {
  const std::lock_guard lock(impl_->lifecycle_mutex);
  if (std::exchange(impl_->stopped, true)) return;
  impl_->doors.inbox.request_stop();
  if (impl_->thread.joinable()) {
    impl_->thread.join();
  } else {
    impl_->loop.run();  // never started: nobody else ends what was submitted
  }
  impl_->loop.close_host_tier();  // memory that others may need, whoever still has the engine
}

void Engine::open_grammars(std::string library, GrammarVocabulary vocabulary) {
  impl_->doors.grammars.open(std::move(library), std::move(vocabulary));
}

void Engine::refuse_grammars(std::string reason) {
  impl_->doors.grammars.refuse(std::move(reason));
}

void Engine::load_adapter(std::int32_t id, const std::string& path) {
  if (impl_->adapters.contains(id)) return;
  impl_->adapters.add(id, load_adapter_of(*impl_->model, path, config()));
}

void Engine::unload_adapter(std::int32_t id) {
  impl_->adapters.remove(id);
}

void Engine::submit(Request request) {
  const std::uint64_t id = request.id;
  if (request.adapter != 0 && !impl_->adapters.contains(request.adapter)) {
    impl_->doors.completions.publish(
        {error_output(id, ErrorCode::invalid_request, concat("there is no adapter ", request.adapter))});
    return;
  }
  if (std::optional<RequestFault> fault = find_fault(request, spec(), config())) {
    impl_->doors.completions.publish({error_output(id, fault->code, std::move(fault->message))});
    return;
  }
  switch (impl_->doors.inbox.submit(std::move(request))) {
    case Inbox::Answer::accepted: return;
    case Inbox::Answer::duplicate:
      impl_->doors.completions.publish(
          {error_output(id, ErrorCode::invalid_request, concat("a request with id ", id, " is live"))});
      return;
    case Inbox::Answer::full:
      impl_->doors.completions.publish({error_output(
          id, ErrorCode::queue_full,
          concat("the queue is full: ", config().max_running, " requests run and ", config().max_waiting, " wait"))});
      return;
    case Inbox::Answer::closed:
      const std::string what = failure();
      impl_->doors.completions.publish({error_output(
          id, ErrorCode::engine_failure, what.empty() ? "the engine is stopped" : "the engine failed: " + what)});
      return;
  }
}

void Engine::abort(std::uint64_t id) {
  impl_->doors.inbox.abort(id);
}

int Engine::event_fd() const {
  return impl_->doors.completions.event_fd();
}

std::vector<RequestOutput> Engine::take_outputs() {
  return impl_->doors.completions.take();
}

std::vector<BlockEvent> Engine::take_block_events() {
  return impl_->doors.block_events.take();
}

EngineStats Engine::stats() const {
  const std::int64_t num_submissions = impl_->doors.inbox.num_submissions();
  EngineStats stats = impl_->doors.status.stats();
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
  return impl_->doors.status.failure();
}

int Engine::blamed_rank() const {
  return impl_->doors.status.blamed_rank();
}

}  // namespace minisgl
