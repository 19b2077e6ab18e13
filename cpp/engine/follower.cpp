// The follower's thread: receive, decode, execute.
#include "engine/follower.h"

#include <pthread.h>
#include <sys/eventfd.h>

#include <cerrno>
#include <exception>
#include <limits>
#include <mutex>
#include <string>
#include <system_error>
#include <utility>

#include "comm/file_descriptor.h"
#include "core/error.h"
#include "core/log.h"
#include "core/quiet_thread.h"
#include "engine/adapters.h"
#include "engine/executor.h"
#include "engine/plan_codec.h"

namespace minisgl {

struct Follower::Impl final : PlanHandler {
  Impl(std::unique_ptr<Model> model_, std::unique_ptr<Device> device_, const EngineConfig& config_,
       std::unique_ptr<PlanReceiver> plans_)
      : config(config_),
        limits(step_limits(config, model_->spec())),
        device(std::move(device_)),
        model(std::move(model_)),
        plans(std::move(plans_)),
        executor(*model, *device, KvCache(*device, model->spec(), config.kv_dtype, config.num_pages, config.page_size),
                 adapters),
        decoder({.num_pages = config.num_pages,
                 .num_host_pages = config.num_host_pages,
                 .page_size = config.page_size,
                 .max_model_len = config.max_model_len,
                 .max_batch_tokens = config.max_batch_tokens,
                 .max_logits = limits.logits,
                 .max_hidden = limits.hidden,
                 .vocab_size = model->spec().vocab_size,
                 .num_adapters = std::numeric_limits<std::int32_t>::max(),
                 .runs_ahead = executor.depth() > 0}),
        ended(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    if (!ended) throw std::system_error(errno, std::generic_category(), "eventfd");
    executor.prepare(limits, config.cuda_graphs);
    if (config.num_host_pages > 0) executor.open_host_tier(config.num_host_pages, [] {});
  }

  // Whatever happened, the device may still work on a step.
  ~Impl() override {
    try {
      device->synchronize();
    } catch (const std::exception& error) {
      log_line(LogLevel::error, std::string("the device's last step failed: ") + error.what());
    }
  }

  void add(SequenceId id, SequenceSampling sampling) override { executor.add(id, std::move(sampling)); }
  void remove(SequenceId id) override { executor.remove(id); }
  void append(SequenceId id, std::span<const std::int32_t> tokens) override { executor.append(id, tokens); }
  void mask(SequenceId id, std::span<const std::uint32_t> words) override { executor.mask(id, words); }
  void pause(SequenceId id, std::span<const std::int32_t> output) override { executor.pause(id, output); }
  // Keeps as many steps in flight as rank 0 does: a device that runs ahead has the next step before it ends the last.
  // Rank 0 delivers the tokens.
  void step(const StepPlan& plan) override {
    executor.launch(plan);
    if (++num_in_flight > executor.depth()) take();
  }
  void draw(std::span<const SequenceId> withdrawn) override { executor.draw(withdrawn); }
  // What the copies touch, no step touches that rank 0 had taken.
  void copy(const TierCopies& copies, std::uint32_t most_in_flight) override {
    while (num_in_flight > most_in_flight) take();
    executor.copy(copies);
  }
  void shut_down() override { running = false; }

  // Waiting for rank 0 is no work.
  std::span<const std::byte> next_frame() {
    Progress& progress = device->pool().progress();
    progress.set_working(false);
    const std::span<const std::byte> frame = plans->receive();
    progress.set_working(true);
    return frame;
  }

  void take() {
    executor.take();
    --num_in_flight;
  }

  void run() noexcept {
    std::string what;
    int blamed = -1;
    try {
      while (running) decoder.decode(next_frame(), *this);
      while (num_in_flight > 0) take();
    } catch (const ChannelInterrupted&) {
    } catch (const RankFailure& error) {
      what = error.what();
      blamed = error.rank();
    } catch (const std::exception& error) {
      what = error.what();
      if (what.empty()) what = "an exception without a message";
    } catch (...) {
      what = "an exception of an unknown type";
    }
    device->pool().progress().set_working(false);
    {
      const std::lock_guard lock(mutex);
      failure = what;
      blamed_rank = blamed;
    }
    eventfd_write(ended.get(), 1);
  }

  const EngineConfig config;
  const StepLimits limits;
  // The executor's model and device outlive it: members are destroyed from the last to the first.
  const std::unique_ptr<Device> device;
  const std::unique_ptr<Model> model;
  const std::unique_ptr<PlanReceiver> plans;
  Adapters adapters;

  // The follower's thread alone uses these.
  Executor executor;
  PlanDecoder decoder;
  std::size_t num_in_flight = 0;  // steps
  bool running = true;

  FileDescriptor ended;
  mutable std::mutex mutex;  // guards the rest
  std::string failure;
  int blamed_rank = -1;
  std::thread thread;
  bool stopped = false;
};

Follower::Follower(std::unique_ptr<Model> model, std::unique_ptr<Device> device, const EngineConfig& config,
                   std::unique_ptr<PlanReceiver> plans)
    : impl_(std::make_unique<Impl>(std::move(model), std::move(device), config, std::move(plans))) {}

Follower::~Follower() {
  stop();
}

void Follower::load_adapter(std::int32_t id, const std::string& path) {
  if (impl_->adapters.contains(id)) return;
  impl_->adapters.add(id, load_adapter_of(*impl_->model, path, config()));
}

void Follower::unload_adapter(std::int32_t id) {
  impl_->adapters.remove(id);
}

void Follower::start() {
  const std::lock_guard lock(impl_->mutex);
  MINISGL_CHECK(!impl_->thread.joinable() && !impl_->stopped, "a follower starts once");
  impl_->thread = start_quiet_thread([impl = impl_.get()] {
    pthread_setname_np(pthread_self(), "minisgl-follow");
    impl->run();
  });
}

void Follower::stop() {
  std::thread thread;
  {
    const std::lock_guard lock(impl_->mutex);
    if (std::exchange(impl_->stopped, true)) return;
    thread = std::move(impl_->thread);
  }
  impl_->plans->interrupt();
  if (thread.joinable()) thread.join();
  impl_->executor.close_host_tier();
}

int Follower::event_fd() const {
  return impl_->ended.get();
}

std::string Follower::failure() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->failure;
}

int Follower::blamed_rank() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->blamed_rank;
}

const ModelSpec& Follower::spec() const {
  return impl_->model->spec();
}

const EngineConfig& Follower::config() const {
  return impl_->config;
}

}  // namespace minisgl
