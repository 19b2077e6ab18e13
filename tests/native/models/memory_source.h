// A model that lives in memory: a weight source whose tensors and configuration tests change at will.
#pragma once

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "io/weight_source.h"
#include "models/registry.h"

namespace minisgl::testing {

class MemorySource : public WeightSource {
 public:
  nlohmann::json values;
  bool interleaved = false;

  // f32 of the given shape, from a fixed random stream.
  void add(const std::string& name, std::vector<std::int64_t> shape, float scale = 0.2f) {
    std::int64_t count = 1;
    for (const std::int64_t dim : shape) count *= dim;
    std::vector<float> data(static_cast<std::size_t>(count));
    std::normal_distribution<float> normal(0.0f, scale);
    for (float& value : data) value = normal(random_);
    tensors_[name] = {std::move(shape), std::move(data)};
  }
  void remove(const std::string& name) { tensors_.erase(name); }
  std::vector<float>& data(const std::string& name) { return tensors_.at(name).data; }

  const nlohmann::json& config() const override { return values; }
  bool contains(const std::string& name) const override { return tensors_.contains(name); }
  TensorData tensor(const std::string& name) const override {
    const auto entry = tensors_.find(name);
    if (entry == tensors_.end()) throw InputError(concat("'memory' has no tensor '", name, "'"));
    return {DType::f32, entry->second.shape, std::as_bytes(std::span(entry->second.data))};
  }
  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    for (const auto& [name, tensor] : tensors_) result.push_back(name);
    return result;
  }
  std::string path() const override { return "memory"; }
  bool interleaved_rope() const override { return interleaved; }

 private:
  struct Tensor {
    std::vector<std::int64_t> shape;
    std::vector<float> data;
  };
  std::map<std::string, Tensor> tensors_;
  std::mt19937 random_{7};
};

// Random tensors of every name and shape that a configuration asks for. `values` as in config.json.
inline MemorySource random_model(nlohmann::json values) {
  MemorySource source;
  source.values = std::move(values);
  const ModelSpec spec = read_model_spec(source);
  const std::int64_t hidden = spec.hidden_size, queries = spec.num_heads * spec.head_dim;
  const std::int64_t keys = spec.num_kv_heads * spec.head_dim, intermediate = spec.intermediate_size;
  const auto projection = [&](const std::string& name, std::int64_t outputs, std::int64_t inputs, bool bias) {
    source.add(name + ".weight", {outputs, inputs}, 1.5f / std::sqrt(static_cast<float>(inputs)));
    if (bias) source.add(name + ".bias", {outputs}, 0.3f);
  };
  source.add("model.embed_tokens.weight", {spec.vocab_size, hidden}, 1.0f);
  if (!spec.tied_embeddings) projection("lm_head", spec.vocab_size, hidden, false);
  source.add("model.norm.weight", {hidden}, 1.0f);
  for (std::int64_t i = 0; i < spec.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    source.add(layer + "input_layernorm.weight", {hidden}, 1.0f);
    source.add(layer + "post_attention_layernorm.weight", {hidden}, 1.0f);
    projection(layer + "self_attn.q_proj", queries, hidden, spec.qkv_bias);
    projection(layer + "self_attn.k_proj", keys, hidden, spec.qkv_bias);
    projection(layer + "self_attn.v_proj", keys, hidden, spec.qkv_bias);
    projection(layer + "self_attn.o_proj", hidden, queries, spec.output_bias);
    if (spec.qk_norm == ModelSpec::QueryKeyNorm::each_head) {
      source.add(layer + "self_attn.q_norm.weight", {spec.head_dim}, 1.0f);
      source.add(layer + "self_attn.k_norm.weight", {spec.head_dim}, 1.0f);
    }
    projection(layer + "mlp.gate_proj", intermediate, hidden, spec.mlp_bias);
    projection(layer + "mlp.up_proj", intermediate, hidden, spec.mlp_bias);
    projection(layer + "mlp.down_proj", hidden, intermediate, spec.mlp_bias);
  }
  return source;
}

// A llama of two layers with tied embeddings.
inline MemorySource tiny_llama() {
  MemorySource source;
  source.values = {{"model_type", "llama"},       {"vocab_size", 50},         {"hidden_size", 32},
                   {"intermediate_size", 40},     {"num_hidden_layers", 2},   {"num_attention_heads", 4},
                   {"num_key_value_heads", 2},    {"rms_norm_eps", 1e-5},     {"max_position_embeddings", 128},
                   {"tie_word_embeddings", true}, {"eos_token_id", {1, 2, 1}}};
  source.add("model.embed_tokens.weight", {50, 32});
  source.add("model.norm.weight", {32}, 1.0f);
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    source.add(layer + "input_layernorm.weight", {32}, 1.0f);
    source.add(layer + "self_attn.q_proj.weight", {32, 32});
    source.add(layer + "self_attn.k_proj.weight", {16, 32});
    source.add(layer + "self_attn.v_proj.weight", {16, 32});
    source.add(layer + "self_attn.o_proj.weight", {32, 32});
    source.add(layer + "post_attention_layernorm.weight", {32}, 1.0f);
    source.add(layer + "mlp.gate_proj.weight", {40, 32});
    source.add(layer + "mlp.up_proj.weight", {40, 32});
    source.add(layer + "mlp.down_proj.weight", {32, 40});
  }
  return source;
}

}  // namespace minisgl::testing
