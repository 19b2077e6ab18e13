// A decoder described by data: what a family's file fills in and the forward pass reads.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/activation.h"
#include "kernels/router.h"

namespace minisgl {

struct RopeSpec {
  enum class Type : std::uint8_t { standard, linear, llama3, yarn, longrope };
  Type type = Type::standard;
  double theta = 10000.0;
  std::int64_t rotary_dim = 0;  // head_dim unless the family rotates only the first dimensions of a head
  double factor = 1.0;
  double original_max_position = 0;                      // llama3, yarn, longrope
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  double beta_fast = 32.0, beta_slow = 1.0;              // yarn
  double attention_factor = 0.0;                         // yarn, longrope; 0: derived from factor
  bool interleaved = false;  // whether files have dimensions 2 i and 2 i + 1 rotate together, not those of two halves
  // Queries at position p are scaled by 1 + query_growth * ln(1 + floor(p / original_max_position)) (Ministral 3).
  double query_growth = 0.0;
  bool truncate = true;             // yarn: correction range rounded to whole dimensions
  std::vector<float> freq_factors;  // [rotary_dim / 2] divisors given by a GGUF file, or empty
  // longrope: [rotary_dim / 2] divisors for contexts up to original_max_position, and for longer ones.
  std::vector<float> short_factors, long_factors;
};

// Names of a layer's norms in Hugging Face's files. An empty name: there is no such norm.
struct LayerNorms {
  std::string attention_input = "input_layernorm";
  std::string attention_output;  // of what attention adds to the residual, before it is added
  std::string mlp_input = "post_attention_layernorm";
  std::string mlp_output;
};

// Names of a layer's experts in Hugging Face's files, behind "model.layers.N.". Each expert may have its matrices
// (experts.0.gate_proj.weight), or all experts together (experts.gate_proj.weight), of which gate and up may be one
// (experts.gate_up_proj, with or without ".weight"); the loader takes what the file has.
struct ExpertNames {
  std::string router = "mlp.gate";
  std::string experts = "mlp.experts";
  std::string gate = "gate_proj", up = "up_proj", down = "down_proj", gate_up = "gate_up_proj";
  std::string shared = "mlp.shared_expert";
  std::string shared_gate_up;  // where gate and up of the shared expert are one matrix
  std::string shared_gate_proj = "gate_proj", shared_up_proj = "up_proj", shared_down = "down_proj";
  std::string shared_gate = "mlp.shared_expert_gate";  // RouterRule::Shared::gated
  std::string choice_bias = "mlp.gate.e_score_correction_bias";
};

// What stands in the MLP's place in layers with experts.
struct ExpertSpec {
  std::int64_t num_experts = 0;  // 0: the model has none
  std::int64_t num_chosen = 0;
  std::int64_t intermediate_size = 0;
  std::vector<std::uint8_t> in_layer;  // [num_layers] whether a layer has experts; empty: all have
  RouterRule::Scores scores = RouterRule::Scores::softmax;
  bool normalized = false;
  double scale = 1.0;
  bool biased = false;                        // whether router, gate, up and down have biases
  bool choice_biased = false;                 // RouterRule::choice_bias
  std::int64_t shared_intermediate_size = 0;  // of the expert that every token takes; 0: there is none
  bool shared_gated = false;                  // RouterRule::Shared::gated
  // Whether experts.gate_up_proj has gate and up in turn, in columns where it is no blocks (gpt-oss).
  bool alternating = false;
  ExpertNames names;
};

struct ModelSpec {
  enum class QueryKeyNorm : std::uint8_t {
    none,
    each_head,  // one for each head, with the same weights
    all_heads,  // one over all query heads, and one over all key heads
  };

  std::string family;
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t max_position = 0;
  double norm_eps = 1e-6;
  double norm_offset = 0.0;     // what files have taken off the weights of norms
  bool centered_norms = false;  // layer norms without bias in place of RMS norms
  LayerNorms norms;
  // Attention and MLP read the same norm of the same residual, to which both are added.
  bool parallel_mlp = false;
  Activation activation = Activation::silu;
  double embedding_scale = 1.0;
  double score_scale = 0.0;  // of queries times keys; 0: 1 / sqrt(head_dim)
  double score_cap = 0.0;    // ScoreRule
  double logit_scale = 1.0;
  double logit_cap = 0.0;  // Ops::scale_logits
  RopeSpec rope;
  std::optional<RopeSpec> sliding_rope;  // of layers with a window, where it is another
  std::vector<std::uint8_t> rotates;     // [num_layers] whether a layer has rope; empty: all have
  std::vector<std::int32_t> window;      // [num_layers] sliding window of each layer, 0 for full attention
  bool qkv_bias = false;
  bool output_bias = false;  // whether the attention's output projection has one
  bool mlp_bias = false;
  bool sinks = false;  // ScoreRule::sinks: self_attn.sinks
  ExpertSpec experts;
  // Whether a layer has experts in place of an MLP.
  bool has_experts(std::int64_t layer) const {
    return experts.num_experts > 0 && (experts.in_layer.empty() || experts.in_layer[static_cast<std::size_t>(layer)]);
  }
  QueryKeyNorm qk_norm = QueryKeyNorm::none;
  bool fused_qkv = false;      // whether files have queries, keys and values as one matrix, qkv_proj
  bool fused_gate_up = false;  // whether they have gate and up as one, gate_up_proj
  bool tied_embeddings = false;
  std::vector<std::int32_t> eos_token_ids;
};

}  // namespace minisgl
