// The adapters that a rank has loaded, by the numbers that requests and plans name them by.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "engine/options.h"
#include "kernels/adapter.h"
#include "models/model.h"

namespace minisgl {

// Thread-safe. Whoever adds and removes sees to it that every rank has an adapter before a request names it, and that
// none that names it is live when it is removed.
class Adapters {
 public:
  bool contains(std::int32_t id) const {
    const std::lock_guard lock(mutex_);
    return adapters_.contains(id);
  }
  std::shared_ptr<const Adapter> at(std::int32_t id) const {
    const std::lock_guard lock(mutex_);
    const auto found = adapters_.find(id);
    MINISGL_CHECK(found != adapters_.end(), "there is no adapter ", id);
    return found->second;
  }
  void add(std::int32_t id, std::shared_ptr<const Adapter> adapter) {
    MINISGL_CHECK(id > 0 && adapter != nullptr, "adapter ", id);
    const std::lock_guard lock(mutex_);
    adapters_.insert_or_assign(id, std::move(adapter));
  }
  void remove(std::int32_t id) {
    const std::lock_guard lock(mutex_);
    adapters_.erase(id);
  }

 private:
  mutable std::mutex mutex_;
  std::unordered_map<std::int32_t, std::shared_ptr<const Adapter>> adapters_;
};

// Throws InputError, also where the engine was started without adapters.
inline std::shared_ptr<const Adapter> load_adapter_of(const Model& model, const std::string& path,
                                                      const EngineConfig& config) {
  if (config.max_adapters == 0) throw InputError("'" + path + "': adapters need --enable-lora or --lora at the start");
  return model.load_adapter(path, config.max_adapter_rank);
}

}  // namespace minisgl
