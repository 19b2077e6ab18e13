// From a path to a model that can compute.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "kernels/device.h"
#include "models/model.h"
#include "models/model_shard.h"

namespace minisgl {

// Where weights come from: the files, or for measuring a random stream of the shapes that the configuration names.
enum class LoadFormat : std::uint8_t { files, dummy };

// progress(done_bytes, total_bytes), called on the loading thread.
using LoadProgress = std::function<void(std::int64_t, std::int64_t)>;

// Where a CPU keeps its packed weights for later starts (WeightMaker::keep_matrices).
struct KeepLimits {
  std::string folder = {};                             // empty: nowhere
  std::int64_t most_bytes = 0;                         // of all models' in it; 0: they aren't kept
  std::int64_t least_bytes = std::int64_t{256} << 20;  // of a model's: less is packed faster than it is found
};

// Loads a folder (config.json + *.safetensors) or a .gguf file; of a folder, dummy weights need config.json alone.
// Each of several ranks loads the part that its device's rank computes. Throws InputError with one clear
// sentence. `device` outlives the model.
std::unique_ptr<Model> load_model(const std::string& path, Device& device, const LoadProgress& progress,
                                  LoadFormat format = LoadFormat::files, Quantize quantize = Quantize::none,
                                  ExpertCut expert_cut = ExpertCut::width, const KeepLimits& keep = {});

}  // namespace minisgl
