// A dense decoder described by data: what a family's file fills in and the forward pass reads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace minisgl {

struct RopeSpec {
  enum class Type : std::uint8_t { standard, linear, llama3, yarn };
  Type type = Type::standard;
  double theta = 10000.0;
  std::int64_t rotary_dim = 0;  // head_dim unless the family rotates a part
  double factor = 1.0;
  double original_max_position = 0;                      // llama3, yarn
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  double beta_fast = 32.0, beta_slow = 1.0;              // yarn
  double attention_factor = 0.0;                         // yarn; 0: derived from factor
  bool truncate = true;                                  // yarn: correction range rounded to whole dimensions
  std::vector<float> freq_factors;                       // [rotary_dim / 2] divisors given by a GGUF file, or empty
};

struct ModelSpec {
  std::string family;
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t max_position = 0;
  double rms_norm_eps = 1e-6;
  RopeSpec rope;
  std::vector<std::int32_t> window;  // [num_layers] sliding window of each layer, 0 for full attention
  bool qkv_bias = false;
  bool output_bias = false;  // whether the attention's output projection has one
  bool mlp_bias = false;
  bool qk_norm = false;
  bool tied_embeddings = false;
  std::vector<std::int32_t> eos_token_ids;
};

}  // namespace minisgl
