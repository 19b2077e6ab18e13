// A model in memory, written as a folder that can be loaded.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include "core/dtype.h"
#include "models/memory_source.h"

namespace minisgl::testing {

// config.json and model.safetensors of f32 tensors.
inline void write_safetensors(const MemorySource& source, const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json") << source.values.dump();
  nlohmann::json header;
  std::string data;
  for (const std::string& name : source.names()) {
    const TensorData tensor = source.tensor(name);
    const std::size_t begin = data.size();
    data.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
    header[name] = {{"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  const std::string text = header.dump();
  const std::uint64_t length = text.size();
  std::ofstream file(folder / "model.safetensors", std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof length);
  file << text << data;
}

}  // namespace minisgl::testing
