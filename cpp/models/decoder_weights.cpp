// Which tensors a decoder is made of, and their shapes.
#include "models/decoder_weights.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/error.h"

namespace minisgl {
namespace {

DecoderLayerWeights load_layer(const ModelSpec& spec, std::int64_t index, WeightLoader& loader) {
  const std::string prefix = concat("model.layers.", index, ".");
  const std::string attention = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp.";
  const std::int64_t query_size = spec.num_heads * spec.head_dim;
  const std::int64_t key_size = spec.num_kv_heads * spec.head_dim;
  const std::int64_t hidden = spec.hidden_size;
  const std::int64_t intermediate = spec.intermediate_size;

  DeviceBuffer input_norm = loader.norm(prefix + "input_layernorm.weight", hidden);
  LinearQKVMerged qkv(
      loader.linear({{attention + "q_proj", Role::query, query_size, hidden, spec.qkv_bias, spec.head_dim},
                     {attention + "k_proj", Role::key, key_size, hidden, spec.qkv_bias, spec.head_dim},
                     {attention + "v_proj", Role::value, key_size, hidden, spec.qkv_bias, spec.head_dim}}));
  DeviceBuffer query_norm, key_norm;
  if (spec.qk_norm) {
    query_norm = loader.norm(attention + "q_norm.weight", spec.head_dim);
    key_norm = loader.norm(attention + "k_norm.weight", spec.head_dim);
  }
  LinearRowParallel output(loader.linear(
      {{attention + "o_proj", Role::attention_output, hidden, query_size, spec.output_bias, spec.head_dim}}));
  DeviceBuffer post_attention_norm = loader.norm(prefix + "post_attention_layernorm.weight", hidden);
  LinearColParallelMerged gate_up(loader.linear({{mlp + "gate_proj", Role::gate, intermediate, hidden, spec.mlp_bias},
                                                 {mlp + "up_proj", Role::up, intermediate, hidden, spec.mlp_bias}}));
  LinearRowParallel down(loader.linear({{mlp + "down_proj", Role::down, hidden, intermediate, spec.mlp_bias}}));
  return {.input_norm = std::move(input_norm),
          .qkv = std::move(qkv),
          .query_norm = std::move(query_norm),
          .key_norm = std::move(key_norm),
          .attention_output = std::move(output),
          .post_attention_norm = std::move(post_attention_norm),
          .gate_up = std::move(gate_up),
          .down = std::move(down)};
}

}  // namespace

DecoderWeights load_decoder_weights(const ModelSpec& spec, WeightLoader& loader) {
  DecoderWeights weights;
  weights.embedding = loader.vocabulary("model.embed_tokens.weight", spec.vocab_size, spec.hidden_size);
  weights.head =
      spec.tied_embeddings ? weights.embedding : loader.vocabulary("lm_head.weight", spec.vocab_size, spec.hidden_size);
  weights.final_norm = loader.norm("model.norm.weight", spec.hidden_size);
  for (std::int64_t i = 0; i < spec.num_layers; ++i) weights.layers.push_back(load_layer(spec, i, loader));
  const auto& bytes = loader.bytes_by_dtype();
  weights.dtype = static_cast<DType>(std::distance(bytes.begin(), std::ranges::max_element(bytes)));
  return weights;
}

std::int64_t DecoderWeights::bytes_per_step() const {
  const auto floats = [](const DeviceBuffer& values) { return static_cast<std::int64_t>(values.size()); };
  std::int64_t bytes = static_cast<std::int64_t>(head->nbytes()) + floats(final_norm);
  if (embedding != head) bytes += static_cast<std::int64_t>(embedding->nbytes()) / embedding->rows();
  for (const DecoderLayerWeights& layer : layers) {
    bytes += floats(layer.input_norm) + layer.qkv.nbytes() + floats(layer.query_norm) + floats(layer.key_norm) +
             layer.attention_output.nbytes() + floats(layer.post_attention_norm) + layer.gate_up.nbytes() +
             layer.down.nbytes();
  }
  return bytes;
}

}  // namespace minisgl
