// What an adapter's adapter_config.json says, as PEFT writes it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "models/config_reader.h"

namespace minisgl {

inline constexpr std::int64_t kMaxAdapterRank = 256;

class AdapterConfig {
 public:
  // Throws InputError for what isn't LoRA, or is more than the product of two matrices added to a linear layer, naming
  // the key.
  explicit AdapterConfig(const ConfigReader& config);

  // Of the module of this name ("model.layers.0.self_attn.q_proj"): its pattern's, or what holds for all.
  std::int64_t rank(const std::string& module) const;
  double scale(const std::string& module) const;

 private:
  std::int64_t rank_;
  double alpha_;
  bool by_root_;                                             // rsLoRA: alpha / sqrt(rank), not alpha / rank
  std::vector<std::pair<std::string, std::int64_t>> ranks_;  // pattern, value
  std::vector<std::pair<std::string, double>> alphas_;
};

}  // namespace minisgl
