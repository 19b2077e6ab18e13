// A rank that decides nothing: it executes what rank 0 plans, on a thread of its own, until rank 0 says that it is
// over.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "comm/plan_channel.h"
#include "engine/options.h"
#include "kernels/device.h"
#include "models/model.h"

namespace minisgl {

class Follower {
 public:
  // `device` is the one that `model` was loaded on; `config` is rank 0's.
  Follower(std::unique_ptr<Model> model, std::unique_ptr<Device> device, const EngineConfig& config,
           std::unique_ptr<PlanReceiver> plans);
  ~Follower();  // stops

  // As Engine's.
  void load_adapter(std::int32_t id, const std::string& path);
  void unload_adapter(std::int32_t id);

  // Starts the thread; once.
  void start();
  // Ends the thread, in the middle of a wait for rank 0 too. Idempotent, from any thread.
  void stop();

  // Readable once the thread has ended.
  int event_fd() const;
  // Set when it ended because of an exception: what it said.
  std::string failure() const;
  // The rank that the failure blames; -1 for none.
  int blamed_rank() const;

  const ModelSpec& spec() const;
  const EngineConfig& config() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace minisgl
