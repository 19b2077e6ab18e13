// GGUF's names put into Hugging Face's words.
#include "io/gguf_vocabulary.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

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

constexpr std::array<NamePair, 21> layer_tensors{{
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_qkv", "self_attn.qkv_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
    {"attn_sinks", "self_attn.sinks"},
    {"ffn_gate_inp", "mlp.gate"},
    {"ffn_gate_exps", "mlp.experts.gate_proj"},
    {"ffn_up_exps", "mlp.experts.up_proj"},
    {"ffn_down_exps", "mlp.experts.down_proj"},
    {"ffn_gate_shexp", "mlp.shared_expert.gate_proj"},
    {"ffn_up_shexp", "mlp.shared_expert.up_proj"},
    {"ffn_down_shexp", "mlp.shared_expert.down_proj"},
    {"ffn_gate_inp_shexp", "mlp.shared_expert_gate"},
}};

struct ArchitectureName {
  std::string_view architecture, gguf_name, name;
};

// What the table above says of other architectures.
constexpr std::array<ArchitectureName, 13> tensors_by_architecture{{
    {"gpt-oss", "post_attention_norm", "post_attention_layernorm"},
    {"phi3", "ffn_up", "mlp.gate_up_proj"},
    {"glm4", "ffn_up", "mlp.gate_up_proj"},
    {"glm4", "post_attention_norm", "post_self_attn_layernorm"},
    {"glm4", "post_ffw_norm", "post_mlp_layernorm"},
    {"olmo2", "post_attention_norm", "post_attention_layernorm"},
    {"olmo2", "post_ffw_norm", "post_feedforward_layernorm"},
    {"gemma2", "ffn_norm", "pre_feedforward_layernorm"},
    {"gemma2", "post_attention_norm", "post_attention_layernorm"},
    {"gemma2", "post_ffw_norm", "post_feedforward_layernorm"},
    {"gemma3", "ffn_norm", "pre_feedforward_layernorm"},
    {"gemma3", "post_attention_norm", "post_attention_layernorm"},
    {"gemma3", "post_ffw_norm", "post_feedforward_layernorm"},
}};

constexpr std::array<NamePair, 24> config_keys{{
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
    {"attention.layer_norm_epsilon", "layer_norm_eps"},
    {"attention.scale", "attention_multiplier"},
    {"embedding_scale", "embedding_multiplier"},
    {"residual_scale", "residual_multiplier"},
    {"logit_scale", "logits_scaling"},  // Granite's, which divides
    {"logit_scale", "logit_scale"},     // Command R's, which multiplies
    {"attn_logit_softcapping", "attn_logit_softcapping"},
    {"final_logit_softcapping", "final_logit_softcapping"},
    {"rope.freq_base_swa", "rope_local_base_freq"},
    {"expert_count", "num_experts"},
    {"expert_used_count", "num_experts_per_tok"},
    {"expert_feed_forward_length", "moe_intermediate_size"},
    {"expert_shared_feed_forward_length", "shared_expert_intermediate_size"},  // Qwen 2's
    {"expert_shared_feed_forward_length", "shared_intermediate_size"},         // Granite's
}};

// Model types that have another name than the architecture of their files.
constexpr std::array<NamePair, 5> model_types{{
    {"command-r", "cohere"},
    {"gemma3", "gemma3_text"},
    {"qwen2moe", "qwen2_moe"},
    {"qwen3moe", "qwen3_moe"},
    {"gpt-oss", "gpt_oss"},
}};

constexpr std::array<std::string_view, 4> interleaved_architectures{"llama", "granite", "granitemoe", "smollm3"};

constexpr const char *short_factors = "rope_factors_short.weight", *long_factors = "rope_factors_long.weight";

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

// What is not f32, or not aligned as the format promises, is null.
Json numbers_of(const TensorData& tensor) {
  if (tensor.dtype != DType::f32 || tensor.shape.size() != 1) return nullptr;
  std::vector<float> values(tensor.bytes.size() / sizeof(float));
  std::memcpy(values.data(), tensor.bytes.data(), values.size() * sizeof(float));
  return values;
}

// Longrope's factors are tensors of the file.
Json longrope_scaling(const GgufFile& file, const ArchitectureMetadata& metadata) {
  Json scaling{{"rope_type", "longrope"}};
  constexpr std::array<NamePair, 2> keys{{
      {"rope.scaling.original_context_length", "original_max_position_embeddings"},
      {"rope.scaling.attn_factor", "attention_factor"},
  }};
  for (const auto& [gguf_key, key] : keys) {
    if (Json value = metadata.get(gguf_key); !value.is_null()) scaling[std::string(key)] = std::move(value);
  }
  for (const auto& [tensor, key] : {std::pair{short_factors, "short_factor"}, std::pair{long_factors, "long_factor"}}) {
    const auto found = file.tensors.find(tensor);
    if (found != file.tensors.end()) scaling[key] = numbers_of(found->second);
  }
  return scaling;
}

Json rope_scaling(const GgufFile& file, const ArchitectureMetadata& metadata) {
  if (file.tensors.contains(long_factors)) return longrope_scaling(file, metadata);
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

// Files of Gemma don't have it: all models scale by the size of a head, but the two of 27B.
Json gemma_query_scalar(const std::string& family, const Json& config) {
  const Json layers = config.value("num_hidden_layers", Json()), hidden = config.value("hidden_size", Json()),
             heads = config.value("num_attention_heads", Json());
  const bool is_largest = layers == (family == "gemma2" ? 46 : 62);
  if (!is_largest || !hidden.is_number_integer() || !heads.is_number_integer() || heads == 0) {
    return config.value("head_dim", Json());
  }
  return hidden.get<double>() / heads.get<double>();
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

bool stores_interleaved_rope(std::string_view architecture) {
  return std::ranges::find(interleaved_architectures, architecture) != interleaved_architectures.end();
}

bool is_config_tensor(std::string_view name) {
  return name == short_factors || name == long_factors;
}

std::string huggingface_tensor_name(std::string_view name, std::string_view architecture) {
  const std::size_t dot = name.rfind('.');  // before "weight" or "bias"
  if (dot == std::string_view::npos) return std::string(name);
  const std::string_view stem = name.substr(0, dot);
  const std::string_view ending = name.substr(dot);
  if (const auto found = find_name(model_tensors, stem); !found.empty()) return concat(found, ending);
  if (!stem.starts_with("blk.")) return std::string(name);
  const std::size_t number_end = stem.find('.', 4);
  if (number_end == std::string_view::npos) return std::string(name);
  const std::string_view part = stem.substr(number_end + 1);
  auto found = find_name(layer_tensors, part);
  for (const ArchitectureName& own : tensors_by_architecture) {
    if (own.architecture == architecture && own.gguf_name == part) found = own.name;
  }
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
  if (Json scaling = rope_scaling(file, metadata); !scaling.is_null()) config["rope_scaling"] = std::move(scaling);
  if (Json rotary = metadata.get("rope.dimension_count"); !rotary.is_null()) config["rotary_dim"] = std::move(rotary);
  config["eos_token_id"] = eos_token_ids(file);

  const auto embedding = file.tensors.find("token_embd.weight");
  if (!config.contains("vocab_size") && embedding != file.tensors.end()) {
    config["vocab_size"] = embedding->second.shape.front();
  }
  config["tie_word_embeddings"] = !file.tensors.contains("output.weight");
  config["attention_bias"] = file.tensors.contains("blk.0.attn_q.bias");
  config["mlp_bias"] = file.tensors.contains("blk.0.ffn_gate.bias");
  if (const auto model_type = find_name(model_types, family); !model_type.empty()) config["model_type"] = model_type;
  // Mistral is written as llama, OLMo 3 as olmo2; a window is the only difference. Mixtral is written as llama, too.
  if (family == "llama" && config.contains("sliding_window")) config["model_type"] = "mistral";
  if (family == "llama" && config.value("num_experts", Json(0)) != 0) config["model_type"] = "mixtral";
  // What files don't say of models that have it so.
  if (family == "qwen3moe") config["norm_topk_prob"] = true;
  if (family == "gpt-oss" && config.contains("rope_scaling")) config["rope_scaling"]["truncate"] = false;
  if (family == "olmo2" && config.contains("sliding_window")) config["model_type"] = "olmo3";
  if (family == "gemma2" || family == "gemma3") config["query_pre_attn_scalar"] = gemma_query_scalar(family, config);
  return config;
}

}  // namespace minisgl
