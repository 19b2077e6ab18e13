// The assembly of a rank: device, weights, memory budget, agreement with the other ranks, and the engine or follower
// made of them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/progress.h"
#include "engine/engine.h"
#include "engine/follower.h"
#include "engine/group.h"
#include "engine/options.h"
#include "kernels/device.h"
#include "models/load_model.h"
#include "models/model.h"

namespace minisgl {

// Called on the thread that opens the rank.
struct RankProgress {
  LoadProgress weights;
  RecordProgress graphs;
  // Counts what the rank does, for its whole life; any thread may read it.
  std::shared_ptr<Progress> counter = std::make_shared<Progress>();
};

// What was loaded and chosen.
struct RankInfo {
  ModelSpec spec;
  EngineConfig config;
  EngineMemory memory;
  DType weight_dtype = DType::f32;
  std::int64_t weight_bytes = 0;
  std::int64_t kv_cache_bytes = 0;
  std::string device_name;
  int num_threads = 0;
};

// A model on its device, and the configuration that all ranks agreed on.
struct LoadedRank {
  std::unique_ptr<Device> device;
  std::unique_ptr<Model> model;
  RankInfo info;
};

// Throws InputError, and RankFailure for another rank's end.
LoadedRank load_rank(const EngineOptions& options, const Place& place = {}, const RankProgress& progress = {});

// Rank 0: takes its place, loads, and makes the engine, which isn't started. Throws as load_rank() does.
struct OpenedEngine {
  std::unique_ptr<Engine> engine;
  RankInfo info;
};
OpenedEngine open_engine(const EngineOptions& options, const Place& place = {}, const RankProgress& progress = {});

// Any other rank, opened in the same way. The memory of its info is empty: rank 0 speaks for all.
struct OpenedFollower {
  std::unique_ptr<Follower> follower;
  RankInfo info;
};
OpenedFollower open_follower(const EngineOptions& options, const Place& place = {}, const RankProgress& progress = {});

}  // namespace minisgl
