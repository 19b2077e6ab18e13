// The structure of a GGUF file (versions 2 and 3): metadata and a table of tensors, every number checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "io/weight_source.h"

namespace minisgl {

struct GgufFile {
  // Scalars, strings up to 4 KiB and number arrays up to 4096 elements, under the file's own keys. Longer values
  // (vocabularies, chat templates) are checked and stepped over: the model doesn't need them.
  std::map<std::string, nlohmann::json> metadata;
  // Under the file's own names. Shapes are row-major: the file's dimensions in reverse.
  std::map<std::string, TensorData> tensors;
};

// `bytes` is the whole file; the result points into it. `name` is what messages call the file. Throws InputError.
GgufFile parse_gguf(std::span<const std::byte> bytes, const std::string& name);

}  // namespace minisgl
