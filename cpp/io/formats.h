// The file formats behind open_weights.
#pragma once

#include <memory>
#include <string>

#include "io/weight_source.h"

namespace minisgl {

std::unique_ptr<WeightSource> open_gguf(const std::string& path);
// A folder with config.json (generation_config.json beside it becomes its key "generation_config") and
// model.safetensors, or the shards that model.safetensors.index.json lists, or one file of another name. Without
// tensors: the configuration alone.
std::unique_ptr<WeightSource> open_safetensors_folder(const std::string& path, bool with_tensors);

}  // namespace minisgl
