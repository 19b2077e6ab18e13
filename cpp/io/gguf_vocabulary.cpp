// GGUF's names put into Hugging Face's words.
#include "io/gguf_vocabulary.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.h"

namespace minisgl {
namespace {

using Json = nlohmann::json;
using NamePair = std::pair<std::string_view, std::string_view>;  // GGUF's, Hugging Face's

constexpr std::array<NamePair, 3> model_tensors{{
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
}};

constexpr std::array<NamePair, 11> layer_tensors{{
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
}};

constexpr std::array<NamePair, 10> config_keys{{
    {"block_count", "num_hidden_layers"},
    {"context_length", "max_position_embeddings"},
    {"embedding_length", "hidden_size"},
    {"feed_forward_length", "intermediate_size"},
    {"attention.head_count", "num_attention_heads"},
    {"attention.layer_norm_rms_epsilon", "rms_norm_eps"},
    {"attention.sliding_window", "sliding_window"},
    {"attention.key_length", "head_dim"},
    {"rope.freq_base", "rope_theta"},
    {"vocab_size", "vocab_size"},
}};

template <std::size_t size>
std::string_view find_name(const std::array<NamePair, size>& names, std::string_view gguf_name) {
  const auto entry = std::ranges::find(names, gguf_name, &NamePair::first);
  return entry == names.end() ? std::string_view{} : entry->second;
}

// Looks metadata up under "<architecture>.<key>"; null when it isn't there.
class ArchitectureMetadata {
 public:
  ArchitectureMetadata(const GgufFile& file, std::string prefix) : file_(file), prefix_(std::move(prefix)) {}
  Json get(std::string_view key) const {
    const auto entry = file_.metadata.find(prefix_ + "." + std::string(key));
    return entry == file_.metadata.end() ? Json() : entry->second;
  }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

// The same number for each layer may be written as an array; a true mix stays an array, and is refused as a number.
Json one_for_all_layers(Json value) {
  if (!value.is_array() || value.empty()) return value;
  const bool uniform = std::ranges::all_of(value, [&](const Json& item) { return item == value[0]; });
  return uniform ? Json(value[0]) : value;
}

Json rope_scaling(const ArchitectureMetadata& metadata) {
  const Json type = metadata.get("rope.scaling.type");
  if (type.is_null() || type == "none") {
    const Json old_linear = metadata.get("rope.scale_linear");
    if (old_linear.is_null()) return nullptr;
    return {{"rope_type", "linear"}, {"factor", old_linear}};
  }
  Json scaling{{"rope_type", type}};
  constexpr std::array<NamePair, 4> keys{{
      {"rope.scaling.factor", "factor"},
      {"rope.scaling.original_context_length", "original_max_position_embeddings"},
      {"rope.scaling.yarn_beta_fast", "beta_fast"},
      {"rope.scaling.yarn_beta_slow", "beta_slow"},
  }};
  for (const auto& [gguf_key, key] : keys) {
    if (Json value = metadata.get(gguf_key); !value.is_null()) scaling[std::string(key)] = std::move(value);
  }
  // Here attn_factor multiplies yarn's own factor of 0.1 ln(factor) + 1; attention_factor replaces it.
  const Json attention = metadata.get("rope.scaling.attn_factor");
  const Json factor = metadata.get("rope.scaling.factor");
  if (type == "yarn" && attention.is_number() && factor.is_number()) {
    const double scale = factor.get<double>();
    scaling["attention_factor"] = attention.get<double>() * (scale > 1.0 ? 0.1 * std::log(scale) + 1.0 : 1.0);
  }
  return scaling;
}

Json eos_token_ids(const GgufFile& file) {
  Json ids = Json::array();
  for (const char* key :
       {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    const auto entry = file.metadata.find(key);
    if (entry != file.metadata.end()) ids.push_back(entry->second);
  }
  return ids;
}

}  // namespace

std::string huggingface_tensor_name(std::string_view name) {
  const std::size_t dot = name.rfind('.');  // before "weight" or "bias"
  if (dot == std::string_view::npos) return std::string(name);
  const std::string_view stem = name.substr(0, dot);
  const std::string_view ending = name.substr(dot);
  if (const auto found = find_name(model_tensors, stem); !found.empty()) return concat(found, ending);
  if (!stem.starts_with("blk.")) return std::string(name);
  const std::size_t number_end = stem.find('.', 4);
  if (number_end == std::string_view::npos) return std::string(name);
  const auto found = find_name(layer_tensors, stem.substr(number_end + 1));
  if (found.empty()) return std::string(name);
  return concat("model.layers.", stem.substr(4, number_end - 4), ".", found, ending);
}

nlohmann::json huggingface_config(const GgufFile& file, const std::string& path) {
  const auto architecture = file.metadata.find("general.architecture");
  if (architecture == file.metadata.end() || !architecture->second.is_string()) {
    throw InputError(concat("'", path, "' doesn't say its architecture (general.architecture)"));
  }
  const auto family = architecture->second.get<std::string>();
  const ArchitectureMetadata metadata(file, family);

  Json config{{"model_type", family}};
  for (const auto& [gguf_key, key] : config_keys) {
    if (Json value = one_for_all_layers(metadata.get(gguf_key)); !value.is_null()) {
      config[std::string(key)] = std::move(value);
    }
  }
  const Json kv_heads = one_for_all_layers(metadata.get("attention.head_count_kv"));
  config["num_key_value_heads"] = kv_heads.is_null() ? config.value("num_attention_heads", Json()) : kv_heads;
  if (Json scaling = rope_scaling(metadata); !scaling.is_null()) config["rope_scaling"] = std::move(scaling);
  if (Json rotary = metadata.get("rope.dimension_count"); !rotary.is_null()) config["rotary_dim"] = std::move(rotary);
  if (Json experts = metadata.get("expert_count"); !experts.is_null()) config["num_experts"] = std::move(experts);
  config["eos_token_id"] = eos_token_ids(file);

  const auto embedding = file.tensors.find("token_embd.weight");
  if (!config.contains("vocab_size") && embedding != file.tensors.end()) {
    config["vocab_size"] = embedding->second.shape.front();
  }
  config["tie_word_embeddings"] = !file.tensors.contains("output.weight");
  config["attention_bias"] = file.tensors.contains("blk.0.attn_q.bias");
  config["mlp_bias"] = file.tensors.contains("blk.0.ffn_gate.bias");
  // Mistral is written as llama; its window is the only difference.
  if (family == "llama" && config.contains("sliding_window")) config["model_type"] = "mistral";
  return config;
}

}  // namespace minisgl
