// What the families of dense decoders share in their configurations.
#include "models/families/dense.h"

#include <algorithm>

#include "core/error.h"

namespace minisgl {
namespace {

constexpr std::int64_t max_positions = std::int64_t{1} << 30;
constexpr std::int64_t max_head_dim = 256;
constexpr std::size_t max_stop_tokens = 256;

// An id, a list of ids, or nothing. Ids outside the vocabulary can never be sampled and are left out: published
// configurations have them.
void add_stop_tokens(const ConfigReader& config, std::int64_t vocab_size, std::vector<std::int32_t>& ids) {
  const nlohmann::json* value = config.find("eos_token_id");
  if (value == nullptr) return;
  const nlohmann::json list = value->is_array() ? *value : nlohmann::json::array({*value});
  if (list.size() > max_stop_tokens) config.fail_value("eos_token_id", concat("at most ", max_stop_tokens, " ids"));
  for (const nlohmann::json& item : list) {
    if (item.is_null()) continue;
    if (!item.is_number_integer()) config.fail_value("eos_token_id", "an integer or a list of integers");
    const auto id = item.get<std::int64_t>();
    if (id < 0 || id >= vocab_size || std::ranges::find(ids, id) != ids.end()) continue;
    ids.push_back(static_cast<std::int32_t>(id));
  }
}

std::vector<std::int32_t> stop_tokens(const ConfigReader& config, std::int64_t vocab_size) {
  std::vector<std::int32_t> ids;
  add_stop_tokens(config, vocab_size, ids);
  if (config.has("generation_config")) add_stop_tokens(config.object("generation_config"), vocab_size, ids);
  return ids;
}

std::int64_t head_dim_of(const ConfigReader& config, const ModelSpec& spec, std::int64_t fallback) {
  if (!config.has("head_dim") && fallback == 0 && spec.hidden_size % spec.num_heads != 0) {
    config.fail(concat("hidden_size ", spec.hidden_size, " is not a multiple of num_attention_heads ", spec.num_heads,
                       ", and there is no head_dim"));
  }
  const std::int64_t derived = fallback != 0 ? fallback : spec.hidden_size / spec.num_heads;
  const std::int64_t head_dim = config.integer("head_dim", 1, max_head_dim, derived);
  if (head_dim > max_head_dim || head_dim % 8 != 0) {  // what the attention kernels take
    config.fail(concat("head_dim must be a multiple of 8 up to ", max_head_dim, ", got ", head_dim));
  }
  return head_dim;
}

// Gemma's configurations may say "gelu" as hidden_act, and hidden_activation counts.
void check_activation(const ConfigReader& config, Activation activation) {
  if (activation == Activation::silu) {
    if (const std::string act = config.text("hidden_act", "silu"); act != "silu" && act != "swish") {
      config.fail_value("hidden_act", "silu");
    }
  } else if (config.text("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh") {
    config.fail_value("hidden_activation", "gelu_pytorch_tanh");
  }
}

// layer_types: whether each layer has a sliding window; empty without the key.
std::vector<bool> read_layer_types(const ConfigReader& config, std::int64_t num_layers) {
  std::vector<bool> sliding;
  const nlohmann::json* types = config.find("layer_types");
  if (types == nullptr) return sliding;
  if (!types->is_array() || std::ssize(*types) != num_layers) {
    config.fail_value("layer_types", concat("a list of ", num_layers, " names"));
  }
  for (const nlohmann::json& type : *types) {
    if (type != "sliding_attention" && type != "full_attention") {
      config.fail_value("layer_types", "a list of 'full_attention' and 'sliding_attention'");
    }
    sliding.push_back(type == "sliding_attention");
  }
  return sliding;
}

// Yarn's context is the original one stretched by the factor, whatever max_position_embeddings was left at.
std::int64_t usable_positions(const ModelSpec& spec, std::int64_t max_position) {
  if (spec.rope.type != RopeSpec::Type::yarn) return max_position;
  const double stretched = spec.rope.original_max_position * spec.rope.factor;
  return std::max(max_position, static_cast<std::int64_t>(std::min(stretched, static_cast<double>(max_positions))));
}

}  // namespace

ModelSpec read_dense(const ConfigReader& config, const DenseDefaults& defaults) {
  ModelSpec spec;
  spec.vocab_size = config.integer("vocab_size", 1, 1 << 24);
  spec.hidden_size = config.integer("hidden_size", 1, 1 << 20);
  spec.intermediate_size = config.integer("intermediate_size", 1, 1 << 22);
  spec.num_layers = config.integer("num_hidden_layers", 1, 4096);
  spec.num_heads = config.integer("num_attention_heads", 1, 4096);
  // Null means one for each head of the queries; absent means the family's default, as in transformers.
  const bool family_default = defaults.num_kv_heads != 0 && !config.is_null("num_key_value_heads");
  spec.num_kv_heads =
      config.integer("num_key_value_heads", 1, 4096, family_default ? defaults.num_kv_heads : spec.num_heads);
  if (spec.num_heads % spec.num_kv_heads != 0) {
    config.fail(concat("num_attention_heads ", spec.num_heads, " is not a multiple of num_key_value_heads ",
                       spec.num_kv_heads));
  }
  spec.head_dim = head_dim_of(config, spec, defaults.head_dim);
  spec.norm_eps = config.number(defaults.norm_eps_key, 0.0, 1.0, defaults.norm_eps);
  const std::int64_t max_position = config.integer("max_position_embeddings", 1, max_positions, defaults.max_position);
  spec.rope = parse_rope(config, spec.head_dim, max_position, defaults.rope);
  spec.max_position = usable_positions(spec, max_position);
  spec.window.assign(static_cast<std::size_t>(spec.num_layers), 0);
  spec.tied_embeddings = config.boolean("tie_word_embeddings", defaults.tied_embeddings);
  spec.eos_token_ids = stop_tokens(config, spec.vocab_size);

  spec.activation = defaults.activation;
  check_activation(config, spec.activation);
  if (!defaults.may_have_experts && config.integer("num_experts", 0, 1 << 20, 0) > 0) {
    config.fail("mixtures of experts of this family are not supported");
  }
  return spec;
}

std::int32_t read_window(const ConfigReader& config, std::int32_t fallback) {
  if (config.is_null("sliding_window")) return 0;
  return static_cast<std::int32_t>(config.integer("sliding_window", 1, max_positions, fallback));
}

std::vector<std::int32_t> read_window_by_layer(const ConfigReader& config, std::int64_t num_layers) {
  std::vector<std::int32_t> windows(static_cast<std::size_t>(num_layers), 0);
  if (!config.boolean("use_sliding_window", false)) return windows;
  const std::int32_t window = read_window(config);
  const std::vector<bool> sliding = read_layer_types(config, num_layers);
  const std::int64_t first = config.integer("max_window_layers", 0, max_positions, 28);
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    const auto i = static_cast<std::size_t>(layer);
    if (sliding.empty() ? layer >= first : sliding[i]) windows[i] = window;
  }
  return windows;
}

std::vector<std::int32_t> read_alternating_windows(const ConfigReader& config, std::int64_t num_layers,
                                                   std::int64_t interval) {
  std::vector<std::int32_t> windows(static_cast<std::size_t>(num_layers), 0);
  const std::int32_t window = read_window(config);
  const std::vector<bool> sliding = read_layer_types(config, num_layers);
  const std::int64_t full = config.integer("sliding_window_pattern", 1, max_positions, interval);
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    const auto i = static_cast<std::size_t>(layer);
    if (sliding.empty() ? (layer + 1) % full != 0 : sliding[i]) windows[i] = window;
  }
  return windows;
}

}  // namespace minisgl
