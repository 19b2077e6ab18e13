// Which tensors a decoder is made of, and their shapes.
#include "models/decoder_weights.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/error.h"

namespace minisgl {
namespace {

// The file has these projections as one matrix, one below the other.
void fuse(const std::string& name, std::vector<ProjectionRequest>& projections) {
  std::int64_t num_rows = 0;
  for (ProjectionRequest& projection : projections) {
    projection.fused = {name, num_rows};
    num_rows += projection.out_features;
  }
  for (ProjectionRequest& projection : projections) projection.fused.num_rows = num_rows;
}

DecoderLayerWeights load_layer(const ModelSpec& spec, std::int64_t index, WeightLoader& loader) {
  const std::string prefix = concat("model.layers.", index, ".");
  const std::string attention = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp.";
  const std::int64_t query_size = spec.num_heads * spec.head_dim;
  const std::int64_t key_size = spec.num_kv_heads * spec.head_dim;
  const std::int64_t hidden = spec.hidden_size;
  const std::int64_t intermediate = spec.intermediate_size;
  const std::int64_t interleaved = spec.rope.interleaved ? spec.rope.rotary_dim : 0;

  const auto norm = [&](const std::string& name) {
    return name.empty() ? DeviceBuffer{} : loader.norm(prefix + name + ".weight", hidden, spec.norm_offset);
  };

  DeviceBuffer attention_input_norm = norm(spec.norms.attention_input);
  std::vector<ProjectionRequest> heads{
      {attention + "q_proj", Role::query, query_size, hidden, spec.qkv_bias, spec.head_dim, interleaved},
      {attention + "k_proj", Role::key, key_size, hidden, spec.qkv_bias, spec.head_dim, interleaved},
      {attention + "v_proj", Role::value, key_size, hidden, spec.qkv_bias, spec.head_dim}};
  if (spec.fused_qkv) fuse(attention + "qkv_proj", heads);
  LinearQKVMerged qkv(loader.linear(heads));
  DeviceBuffer query_norm, key_norm;
  if (spec.qk_norm == ModelSpec::QueryKeyNorm::each_head) {
    query_norm = loader.norm(attention + "q_norm.weight", spec.head_dim, spec.norm_offset);
    key_norm = loader.norm(attention + "k_norm.weight", spec.head_dim, spec.norm_offset);
  } else if (spec.qk_norm == ModelSpec::QueryKeyNorm::all_heads) {
    query_norm = loader.head_norm(attention + "q_norm.weight", heads[0]);
    key_norm = loader.head_norm(attention + "k_norm.weight", heads[1]);
  }
  LinearRowParallel output(loader.linear(
      {{attention + "o_proj", Role::attention_output, hidden, query_size, spec.output_bias, spec.head_dim}}));
  DeviceBuffer attention_output_norm = norm(spec.norms.attention_output);
  DeviceBuffer mlp_input_norm = norm(spec.norms.mlp_input);
  std::vector<ProjectionRequest> gates{{mlp + "gate_proj", Role::gate, intermediate, hidden, spec.mlp_bias},
                                       {mlp + "up_proj", Role::up, intermediate, hidden, spec.mlp_bias}};
  if (spec.fused_gate_up) fuse(mlp + "gate_up_proj", gates);
  LinearColParallelMerged gate_up(loader.linear(gates));
  LinearRowParallel down(loader.linear({{mlp + "down_proj", Role::down, hidden, intermediate, spec.mlp_bias}}));
  DeviceBuffer mlp_output_norm = norm(spec.norms.mlp_output);
  return {.attention_input_norm = std::move(attention_input_norm),
          .qkv = std::move(qkv),
          .query_norm = std::move(query_norm),
          .key_norm = std::move(key_norm),
          .attention_output = std::move(output),
          .attention_output_norm = std::move(attention_output_norm),
          .mlp_input_norm = std::move(mlp_input_norm),
          .gate_up = std::move(gate_up),
          .down = std::move(down),
          .mlp_output_norm = std::move(mlp_output_norm)};
}

}  // namespace

DecoderWeights load_decoder_weights(const ModelSpec& spec, WeightLoader& loader) {
  DecoderWeights weights;
  weights.embedding = loader.vocabulary("model.embed_tokens.weight", spec.vocab_size, spec.hidden_size);
  weights.head =
      spec.tied_embeddings ? weights.embedding : loader.vocabulary("lm_head.weight", spec.vocab_size, spec.hidden_size);
  weights.final_norm = loader.norm("model.norm.weight", spec.hidden_size, spec.norm_offset);
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
    for (const DeviceBuffer* norm : {&layer.attention_input_norm, &layer.query_norm, &layer.key_norm,
                                     &layer.attention_output_norm, &layer.mlp_input_norm, &layer.mlp_output_norm}) {
      bytes += floats(*norm);
    }
    bytes += layer.qkv.nbytes() + layer.attention_output.nbytes() + layer.gate_up.nbytes() + layer.down.nbytes();
  }
  return bytes;
}

}  // namespace minisgl
