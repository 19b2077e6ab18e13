// The structure of a safetensors file: a JSON header and the bytes behind it, every number checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace minisgl {

struct SafetensorsEntry {
  std::string dtype;  // the format's name: "BF16"; any, also one that no kernel reads
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;  // as many as dtype and shape take, where the dtype is known to the format
};

// The format that an entry's dtype names, if matrices or norms have it.
std::optional<DType> dtype_of(const std::string& name);
// What a tensor of a model of text and images is called in the text part alone; other names as they are.
std::string text_part_name(const std::string& name);

// `bytes` is the whole file; the result points into it. `name` is what messages call the file. Throws InputError.
std::map<std::string, SafetensorsEntry> parse_safetensors(std::span<const std::byte> bytes, const std::string& name);

}  // namespace minisgl
