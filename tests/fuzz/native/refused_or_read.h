// What every fuzz target promises: bytes are read, or refused with an InputError of one short line; all else is a bug.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "io/weight_source.h"
#include "models/registry.h"

namespace minisgl::testing {

template <typename Read>
void read_or_refuse(const Read& read) {
  try {
    read();
  } catch (const InputError& error) {
    const std::string_view message = error.what();
    if (message.empty() || message.size() > 2000 || message.find('\n') != std::string_view::npos) std::abort();
  }
}

// Touches both ends, so that a span beyond its file is seen by AddressSanitizer.
inline void touch(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const volatile std::byte first = bytes.front(), last = bytes.back();
  static_cast<void>(first);
  static_cast<void>(last);
}

// A configuration without tensors.
class ConfigSource : public WeightSource {
 public:
  explicit ConfigSource(nlohmann::json config) : config_(std::move(config)) {}
  const nlohmann::json& config() const override { return config_; }
  bool contains(const std::string&) const override { return false; }
  TensorData tensor(const std::string& name) const override { throw InputError("no tensor '" + name + "'"); }
  std::vector<std::string> names() const override { return {}; }
  std::string path() const override { return "m"; }
  bool interleaved_rope() const override { return false; }

 private:
  nlohmann::json config_;
};

// What a reader of models promises of a configuration that it accepts: sizes that arithmetic on them can't overflow.
inline void read_spec(nlohmann::json config) {
  const ModelSpec spec = read_model_spec(ConfigSource(std::move(config)));
  const bool sane = spec.head_dim > 0 && spec.head_dim <= 256 && spec.num_heads > 0 &&
                    spec.num_heads % spec.num_kv_heads == 0 && spec.max_position > 0 &&
                    spec.max_position <= std::int64_t{1} << 30 && std::ssize(spec.window) == spec.num_layers &&
                    spec.rope.rotary_dim == spec.head_dim;
  if (!sane) std::abort();
}

}  // namespace minisgl::testing
