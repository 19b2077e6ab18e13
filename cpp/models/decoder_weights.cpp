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

// gate_up and down, of an MLP whose projections have these names.
struct MlpNames {
  std::string gate, up, down;
  std::string gate_up;  // where gate and up are one matrix, else empty
};
void load_mlp(const MlpNames& names, std::int64_t intermediate, const ModelSpec& spec, WeightLoader& loader,
              DecoderLayerWeights& layer) {
  const std::int64_t hidden = spec.hidden_size;
  std::vector<ProjectionRequest> gates{{names.gate, Role::gate, intermediate, hidden, spec.mlp_bias},
                                       {names.up, Role::up, intermediate, hidden, spec.mlp_bias}};
  if (!names.gate_up.empty()) fuse(names.gate_up, gates);
  layer.gate_up = LinearColParallelMerged(loader.linear(gates));
  layer.down = LinearRowParallel(loader.linear({{names.down, Role::down, hidden, intermediate, spec.mlp_bias}}));
}

void load_experts(const ModelSpec& spec, const std::string& prefix, WeightLoader& loader, DecoderLayerWeights& layer) {
  const ExpertSpec& experts = spec.experts;
  const ExpertNames& names = experts.names;
  std::vector<ProjectionRequest> router{
      {prefix + names.router, Role::router, experts.num_experts, spec.hidden_size, experts.biased}};
  if (experts.shared_gated) router.push_back({prefix + names.shared_gate, Role::router, 1, spec.hidden_size});
  layer.router = loader.linear(router);
  if (experts.choice_biased) layer.choice_bias = loader.norm(prefix + names.choice_bias, experts.num_experts);
  layer.experts = loader.experts(prefix, spec);
  if (experts.shared_intermediate_size == 0) return;
  const std::string shared = prefix + names.shared + ".";
  load_mlp({.gate = shared + names.shared_gate_proj,
            .up = shared + names.shared_up_proj,
            .down = shared + names.shared_down,
            .gate_up = names.shared_gate_up.empty() ? "" : shared + names.shared_gate_up},
           experts.shared_intermediate_size, spec, loader, layer);
}

DecoderLayerWeights load_layer(const ModelSpec& spec, std::int64_t index, WeightLoader& loader) {
  const std::string prefix = concat("model.layers.", index, ".");
  const std::string attention = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp.";
  const std::int64_t query_size = spec.num_heads * spec.head_dim;
  const std::int64_t key_size = spec.num_kv_heads * spec.head_dim;
  const std::int64_t hidden = spec.hidden_size;
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
  DecoderLayerWeights layer{.attention_input_norm = std::move(attention_input_norm),
                            .qkv = std::move(qkv),
                            .query_norm = std::move(query_norm),
                            .key_norm = std::move(key_norm),
                            .attention_output = std::move(output),
                            .attention_output_norm = norm(spec.norms.attention_output),
                            .mlp_input_norm = norm(spec.norms.mlp_input),
                            .mlp_output_norm = norm(spec.norms.mlp_output)};
  if (spec.sinks) {
    const std::string name = attention + "sinks";
    layer.sinks = loader.head_norm(loader.contains(name + ".weight") ? name + ".weight" : name,
                                   {.name = name, .role = Role::query, .out_features = spec.num_heads});
  }
  if (spec.has_experts(index)) {
    load_experts(spec, prefix, loader, layer);
  } else {
    load_mlp({.gate = mlp + "gate_proj",
              .up = mlp + "up_proj",
              .down = mlp + "down_proj",
              .gate_up = spec.fused_gate_up ? mlp + "gate_up_proj" : ""},
             spec.intermediate_size, spec, loader, layer);
  }
  return layer;
}

}  // namespace

DecoderWeights load_decoder_weights(const ModelSpec& spec, WeightLoader& loader) {
  DecoderWeights weights;
  weights.embedding = loader.vocabulary("model.embed_tokens.weight", spec.vocab_size, spec.hidden_size);
  weights.head =
      spec.tied_embeddings ? weights.embedding : loader.vocabulary("lm_head.weight", spec.vocab_size, spec.hidden_size);
  weights.final_norm = loader.norm("model.norm.weight", spec.hidden_size, spec.norm_offset);
  for (std::int64_t i = 0; i < spec.num_layers; ++i) weights.layers.push_back(load_layer(spec, i, loader));
  weights.adapter_targets = loader.take_adapter_targets();
  const auto& bytes = loader.bytes_by_dtype();
  weights.num_chosen = spec.experts.num_chosen;
  weights.dtype = static_cast<DType>(std::distance(bytes.begin(), std::ranges::max_element(bytes)));
  return weights;
}

std::int64_t DecoderWeights::bytes_per_step() const {
  const auto floats = [](const DeviceBuffer& values) { return static_cast<std::int64_t>(values.size()); };
  std::int64_t bytes = static_cast<std::int64_t>(head->nbytes()) + floats(final_norm);
  if (embedding != head) bytes += static_cast<std::int64_t>(embedding->nbytes()) / embedding->rows();
  for (const DecoderLayerWeights& layer : layers) {
    for (const DeviceBuffer* norm :
         {&layer.attention_input_norm, &layer.query_norm, &layer.key_norm, &layer.attention_output_norm,
          &layer.mlp_input_norm, &layer.mlp_output_norm, &layer.sinks, &layer.choice_bias}) {
      bytes += floats(*norm);
    }
    bytes += layer.qkv.nbytes() + layer.attention_output.nbytes() + layer.gate_up.nbytes() + layer.down.nbytes();
    if (layer.experts == nullptr) continue;
    bytes += layer.router->nbytes() + layer.experts->nbytes() * num_chosen / layer.experts->shape().all_experts;
  }
  return bytes;
}

}  // namespace minisgl
