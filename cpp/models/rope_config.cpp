// Rotary embedding settings out of a configuration, in the old spelling and the new.
#include "models/rope_config.h"

#include <cmath>

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
  rope.fail(concat("rope type ", quote_name(name), " is not supported; supported: default, linear, llama3, yarn"));
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
  }
}

}  // namespace

RopeSpec parse_rope(const ConfigReader& config, std::int64_t head_dim, std::int64_t max_position) {
  RopeSpec spec;
  spec.rotary_dim = config.integer("rotary_dim", 2, 1 << 16, head_dim);
  spec.theta = config.number("rope_theta", 1.0, max_theta, 10000.0);
  double rotated_part = config.number("partial_rotary_factor", 0.0, 1.0, 1.0);
  const char* key = config.has_entries("rope_scaling") ? "rope_scaling" : "rope_parameters";
  if (config.has_entries(key)) {
    const ConfigReader rope = config.object(key);
    if (rope.has("full_attention") || rope.has("sliding_attention")) {
      rope.fail("rope parameters that differ by layer are not supported");
    }
    spec.theta = rope.number("rope_theta", 1.0, max_theta, spec.theta);
    rotated_part = rope.number("partial_rotary_factor", 0.0, 1.0, rotated_part);
    spec.type = parse_type(rope);
    parse_scaling(config, rope, max_position, spec);
  }
  if (spec.rotary_dim != head_dim || rotated_part != 1.0) {
    config.fail("rotating only a part of each head is not supported");
  }
  return spec;
}

}  // namespace minisgl
