// A small random model on any device, behind an engine that is short of pages.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "engine/engine.h"
#include "models/decoder_weights.h"
#include "models/memory_source.h"
#include "models/registry.h"
#include "models/weight_loader.h"

namespace minisgl::testing_support {

// Two layers of heads of 16, wide enough for every kernel.
inline minisgl::testing::MemorySource small_qwen3(std::int64_t vocab_size) {
  minisgl::testing::MemorySource source;
  source.values = {{"model_type", "qwen3"},      {"vocab_size", vocab_size}, {"hidden_size", 64},
                   {"intermediate_size", 160},   {"num_hidden_layers", 2},   {"num_attention_heads", 4},
                   {"num_key_value_heads", 2},   {"head_dim", 16},           {"max_position_embeddings", 512},
                   {"tie_word_embeddings", true}};
  source.add("model.embed_tokens.weight", {vocab_size, 64}, 1.0f);
  source.add("model.norm.weight", {64}, 1.0f);
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    source.add(layer + "input_layernorm.weight", {64}, 1.0f);
    source.add(layer + "self_attn.q_proj.weight", {64, 64});
    source.add(layer + "self_attn.k_proj.weight", {32, 64});
    source.add(layer + "self_attn.v_proj.weight", {32, 64});
    source.add(layer + "self_attn.o_proj.weight", {64, 64});
    source.add(layer + "self_attn.q_norm.weight", {16}, 1.0f);
    source.add(layer + "self_attn.k_norm.weight", {16}, 1.0f);
    source.add(layer + "post_attention_layernorm.weight", {64}, 1.0f);
    source.add(layer + "mlp.gate_proj.weight", {160, 64});
    source.add(layer + "mlp.up_proj.weight", {160, 64});
    source.add(layer + "mlp.down_proj.weight", {64, 160});
  }
  return source;
}

// Too few pages for all at once: some are preempted.
inline EngineOptions short_of_pages() {
  EngineOptions options;
  options.num_pages = 96;
  options.page_size = 16;
  options.kv_dtype = DType::bf16;
  options.max_seq_len = 512;
  options.max_running = 24;
  options.max_batch_tokens = 64;
  options.check_invariants = true;
  return options;
}

inline std::unique_ptr<Engine> small_engine(std::unique_ptr<Ops> device, std::int64_t vocab_size,
                                            const EngineOptions& options) {
  const minisgl::testing::MemorySource source = small_qwen3(vocab_size);
  ModelSpec spec = read_model_spec(source);
  WeightLoader loader(source, *device, WeightLoader::Pass::load, [](std::int64_t) {});
  DecoderWeights weights = load_decoder_weights(spec, loader);
  auto model = make_decoder(std::move(spec), std::move(weights), *device);
  return std::make_unique<Engine>(std::move(model), std::move(device), options);
}

}  // namespace minisgl::testing_support
