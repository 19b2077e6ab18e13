// Rotary embedding settings out of a configuration, in the old spelling and the new.
#include "models/rope_config.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/error.h"
#include "io/quote.h"

namespace minisgl {
namespace {

constexpr double max_theta = 1e15;
constexpr double max_factor = 1e6;
constexpr std::int64_t max_positions = std::int64_t{1} << 30;

RopeSpec::Type parse_type(const ConfigReader& rope) {
  const std::string name = rope.text("rope_type", rope.text("type", "default"));
  if (name == "default") return RopeSpec::Type::standard;
  if (name == "linear") return RopeSpec::Type::linear;
  if (name == "llama3") return RopeSpec::Type::llama3;
  if (name == "yarn") return RopeSpec::Type::yarn;
  if (name == "longrope" || name == "su") return RopeSpec::Type::longrope;
  rope.fail(
      concat("rope type ", quote_name(name), " is not supported; supported: default, linear, llama3, yarn, longrope"));
}

// The factor that yarn scales cos and sin by, when the configuration says more than the scaling factor; else 0.
double parse_yarn_attention_factor(const ConfigReader& rope, double factor) {
  if (rope.has("attention_factor")) return rope.number("attention_factor", 1e-6, max_factor);
  const double mscale = rope.number("mscale", 0.0, max_factor, 0.0);
  const double mscale_all_dim = rope.number("mscale_all_dim", 0.0, max_factor, 0.0);
  if (mscale == 0.0 || mscale_all_dim == 0.0) return 0.0;
  const auto scale = [&](double weight) { return factor <= 1.0 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0; };
  return scale(mscale) / scale(mscale_all_dim);
}

double number_or_zero_is_default(const ConfigReader& rope, const char* key, double fallback) {
  const double value = rope.number(key, 0.0, max_factor, 0.0);
  return value == 0.0 ? fallback : value;
}

// The context before stretching. At the outer level it counts more than beside the scaling, as in transformers.
double parse_original_max_position(const ConfigReader& config, const ConfigReader& rope, std::int64_t max_position) {
  const char* key = "original_max_position_embeddings";
  return static_cast<double>((config.has(key) ? config : rope).integer(key, 1, max_positions, max_position));
}

std::vector<float> parse_factors(const ConfigReader& rope, const char* key, std::int64_t count) {
  const std::string expected = concat("a list of ", count, " numbers above 0");
  const nlohmann::json* list = rope.find(key);
  if (list == nullptr || !list->is_array() || std::ssize(*list) != count) rope.fail_value(key, expected);
  std::vector<float> factors;
  for (const nlohmann::json& item : *list) {
    if (!item.is_number() || !(item.get<double>() > 0.0 && item.get<double>() < max_factor)) {
      rope.fail_value(key, expected);
    }
    factors.push_back(item.get<float>());
  }
  return factors;
}

// Dimensions of a head that rotate: a number, or a part of head_dim at either level.
std::int64_t parse_rotary_dim(const ConfigReader& config, double part, std::int64_t head_dim, bool rotates_part) {
  const auto dim =
      config.integer("rotary_dim", 2, 1 << 16, static_cast<std::int64_t>(static_cast<double>(head_dim) * part));
  if (!rotates_part && dim != head_dim) config.fail("rotating only a part of each head is not supported");
  if (dim < 2 || dim > head_dim || dim % 2 != 0) {
    config.fail(concat("an even number of each head's ", head_dim, " dimensions can rotate, got ", dim));
  }
  return dim;
}

void parse_scaling(const ConfigReader& config, const ConfigReader& rope, std::int64_t max_position, RopeSpec& spec) {
  switch (spec.type) {
    case RopeSpec::Type::standard: return;
    case RopeSpec::Type::linear: spec.factor = rope.number("factor", 1e-3, max_factor); return;
    case RopeSpec::Type::llama3:
      spec.factor = rope.number("factor", 1e-3, max_factor);
      spec.original_max_position = parse_original_max_position(config, rope, max_position);
      spec.low_freq_factor = rope.number("low_freq_factor", 1e-3, max_factor);
      spec.high_freq_factor = rope.number("high_freq_factor", 1e-3, max_factor);
      if (spec.high_freq_factor <= spec.low_freq_factor) {
        rope.fail(concat("high_freq_factor ", spec.high_freq_factor, " must be more than low_freq_factor ",
                         spec.low_freq_factor));
      }
      return;
    case RopeSpec::Type::yarn:
      spec.original_max_position = parse_original_max_position(config, rope, max_position);
      spec.factor =
          rope.number("factor", 1e-3, max_factor, static_cast<double>(max_position) / spec.original_max_position);
      spec.attention_factor = parse_yarn_attention_factor(rope, spec.factor);
      spec.beta_fast = number_or_zero_is_default(rope, "beta_fast", 32.0);
      spec.beta_slow = number_or_zero_is_default(rope, "beta_slow", 1.0);
      spec.truncate = rope.boolean("truncate", true);
      if (spec.theta == 1.0) rope.fail("rope_theta must not be 1 with yarn");
      return;
    case RopeSpec::Type::longrope:
      spec.original_max_position = parse_original_max_position(config, rope, max_position);
      spec.factor =
          rope.number("factor", 1e-3, max_factor, static_cast<double>(max_position) / spec.original_max_position);
      spec.attention_factor = rope.number("attention_factor", 0.0, max_factor, 0.0);
      if (spec.original_max_position < 2.0) rope.fail("original_max_position_embeddings must be 2 or more");
      spec.short_factors = parse_factors(rope, "short_factor", spec.rotary_dim / 2);
      spec.long_factors = parse_factors(rope, "long_factor", spec.rotary_dim / 2);
      return;
  }
}

// The settings in `rope`; keys of `config` count where it lacks them.
RopeSpec parse_settings(const ConfigReader& config, const ConfigReader& rope, std::int64_t head_dim,
                        std::int64_t max_position, const RopeDefaults& defaults) {
  RopeSpec spec;
  spec.theta = rope.number("rope_theta", 1.0, max_theta, config.number("rope_theta", 1.0, max_theta, defaults.theta));
  const char* key = "partial_rotary_factor";
  const double part = rope.number(key, 0.0, 1.0, config.number(key, 0.0, 1.0, defaults.rotated_part));
  spec.rotary_dim = parse_rotary_dim(config, part, head_dim, defaults.rotates_part);
  spec.type = parse_type(rope);
  parse_scaling(config, rope, max_position, spec);
  spec.query_growth = rope.number("llama_4_scaling_beta", 0.0, max_factor, 0.0);
  if (spec.query_growth != 0.0) spec.original_max_position = parse_original_max_position(config, rope, max_position);
  return spec;
}

const char* settings_key(const ConfigReader& config) {
  return config.has_entries("rope_scaling") ? "rope_scaling" : "rope_parameters";
}

bool differs_by_layer(const ConfigReader& rope) {
  return rope.has("full_attention") || rope.has("sliding_attention");
}

}  // namespace

RopeSpec parse_rope(const ConfigReader& config, std::int64_t head_dim, std::int64_t max_position,
                    const RopeDefaults& defaults) {
  const nlohmann::json nothing = nlohmann::json::object();
  const ConfigReader none(nothing, "rope_parameters");
  const char* key = settings_key(config);
  if (!config.has_entries(key)) return parse_settings(config, none, head_dim, max_position, defaults);
  const ConfigReader rope = config.object(key);
  if (!differs_by_layer(rope)) return parse_settings(config, rope, head_dim, max_position, defaults);
  if (!defaults.by_layer) rope.fail("rope parameters that differ by layer are not supported");
  const bool has_own = rope.has("full_attention");
  return parse_settings(config, has_own ? rope.object("full_attention") : none, head_dim, max_position, defaults);
}

RopeSpec parse_sliding_rope(const ConfigReader& config, std::int64_t head_dim, std::int64_t max_position,
                            const RopeDefaults& defaults) {
  const char* key = settings_key(config);
  if (config.has_entries(key) && config.object(key).has("sliding_attention")) {
    return parse_settings(config, config.object(key).object("sliding_attention"), head_dim, max_position, defaults);
  }
  RopeSpec spec;
  spec.theta = defaults.theta;
  spec.rotary_dim = head_dim;
  return spec;
}

}  // namespace minisgl
