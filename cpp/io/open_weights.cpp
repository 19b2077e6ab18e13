// Which format a path holds.
#include <filesystem>
#include <string>
#include <utility>

#include "core/error.h"
#include "io/formats.h"
#include "io/weight_source.h"

namespace minisgl {

StoredTensor WeightSource::stored(const std::string& name) const {
  TensorData data = tensor(name);
  return {std::string(dtype_info(data.dtype).name), std::move(data.shape), data.bytes};
}

std::unique_ptr<WeightSource> open_weights(const std::string& path, bool with_tensors) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) throw InputError(concat("'", path, "' does not exist"));
  if (fs::is_directory(status)) return open_safetensors_folder(path, with_tensors);
  if (path.ends_with(".safetensors") || path.ends_with(".safetensors.index.json")) {
    throw InputError(concat("'", path, "' is only ", path.ends_with(".json") ? "an index of " : "",
                            "weights: give the folder that holds it and its config.json"));
  }
  return open_gguf(path);
}

}  // namespace minisgl
