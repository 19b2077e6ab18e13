#include "models/adapter_config.h"

#include <array>
#include <cmath>

#include "core/error.h"
#include "io/quote.h"

namespace minisgl {
namespace {

constexpr double kMaxAlpha = 1e6;

// Forms of LoRA that change more than a linear layer's product, or it in another way.
constexpr std::array kOtherForms{"use_dora", "use_qalora", "lora_bias", "fan_in_fan_out"};
// Lists and objects that name more than that.
constexpr std::array kOtherParts{
    "modules_to_save",         "target_parameters", "layer_replication", "trainable_token_indices",
    "alora_invocation_tokens", "megatron_config",   "eva_config",        "corda_config"};

template <typename Read>
auto read_patterns(const ConfigReader& config, const char* key, const Read& read) {
  std::vector<std::pair<std::string, decltype(read(config, ""))>> patterns;
  if (!config.has(key)) return patterns;
  const ConfigReader object = config.object(key);
  for (const auto& [pattern, value] : config.find(key)->items()) patterns.emplace_back(pattern, read(object, pattern));
  return patterns;
}

// Whether the module's name is the pattern or ends with it, behind a dot, as PEFT has it. Patterns there may be regular
// expressions; names alone are taken.
bool fits(const std::string& module, const std::string& pattern) {
  if (!module.ends_with(pattern)) return false;
  return module.size() == pattern.size() || module[module.size() - pattern.size() - 1] == '.';
}

template <typename Value>
Value of(const std::string& module, const std::vector<std::pair<std::string, Value>>& patterns, Value common) {
  for (const auto& [pattern, value] : patterns) {
    if (fits(module, pattern)) return value;
  }
  return common;
}

}  // namespace

AdapterConfig::AdapterConfig(const ConfigReader& config) {
  if (const std::string type = config.text("peft_type", ""); type != "LORA") {
    config.fail_value("peft_type", "LORA");
  }
  for (const char* key : kOtherForms) {
    if (config.boolean(key, false)) config.fail(concat(key, " isn't supported"));
  }
  for (const char* key : kOtherParts) {
    if (config.has_entries(key)) config.fail(concat(key, " isn't supported"));
  }
  if (const std::string bias = config.text("bias", "none"); bias != "none") {
    config.fail(concat("bias ", quote_name(bias), " isn't supported: it must be none"));
  }
  rank_ = config.integer("r", 1, kMaxAdapterRank);
  alpha_ = config.number("lora_alpha", -kMaxAlpha, kMaxAlpha);
  by_root_ = config.boolean("use_rslora", false);
  ranks_ = read_patterns(config, "rank_pattern", [](const ConfigReader& object, const std::string& key) {
    return object.integer(key.c_str(), 1, kMaxAdapterRank);
  });
  alphas_ = read_patterns(config, "alpha_pattern", [](const ConfigReader& object, const std::string& key) {
    return object.number(key.c_str(), -kMaxAlpha, kMaxAlpha);
  });
  for (const char* key : {"rank_pattern", "alpha_pattern"}) {
    if (!config.has(key)) continue;
    for (const auto& [pattern, value] : config.find(key)->items()) {
      if (pattern.find_first_of("*+?[](){}|\\^$") != std::string::npos) {
        config.fail(
            concat(key, " has the regular expression ", quote_name(pattern), ": only names of modules are read"));
      }
    }
  }
}

std::int64_t AdapterConfig::rank(const std::string& module) const {
  return of(module, ranks_, rank_);
}

double AdapterConfig::scale(const std::string& module) const {
  const auto rank = static_cast<double>(this->rank(module));
  return of(module, alphas_, alpha_) / (by_root_ ? std::sqrt(rank) : rank);
}

}  // namespace minisgl
