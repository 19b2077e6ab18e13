// A rank's part of a decoder's weights, packed, in the order that the forward pass reads them. Sizes are those of the
// part (models/model_shard.h), but for hidden.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "layers/linear.h"
#include "layers/vocab.h"
#include "models/model_spec.h"
#include "models/weight_loader.h"

namespace minisgl {

struct DecoderLayerWeights {
  DeviceBuffer attention_input_norm;   // [hidden_size] f32, as are all norms; empty where there is none
  LinearQKVMerged qkv;                 // hidden -> (num_heads + 2 * num_kv_heads) * head_dim
  DeviceBuffer query_norm;             // [head_dim], or [num_heads * head_dim] of a norm over all heads, or empty
  DeviceBuffer key_norm;               // [head_dim], or [num_kv_heads * head_dim], or empty
  LinearRowParallel attention_output;  // num_heads * head_dim -> hidden
  DeviceBuffer attention_output_norm;  // [hidden_size] or empty
  DeviceBuffer mlp_input_norm;         // [hidden_size] or empty
  LinearColParallelMerged gate_up;     // hidden -> 2 * intermediate: of the MLP, or of the shared expert, or nothing
  LinearRowParallel down;              // intermediate -> hidden, the same
  DeviceBuffer mlp_output_norm;        // [hidden_size] or empty
  DeviceBuffer sinks;                  // [num_heads] or empty (ScoreRule)
  // Null in layers with an MLP.
  std::unique_ptr<const Experts> experts;
  std::unique_ptr<const Linear> router;  // hidden -> all experts, and the shared expert's gate
  DeviceBuffer choice_bias;              // [all experts] or empty
};

struct DecoderWeights {
  std::shared_ptr<const Matrix> embedding;  // [vocab_size, hidden_size]
  std::shared_ptr<const Matrix> head;       // the same; the embedding itself when tied
  DeviceBuffer final_norm;                  // [hidden_size]
  std::vector<DecoderLayerWeights> layers;
  std::vector<AdapterTarget> adapter_targets;
  std::int64_t num_chosen = 0;    // experts that a token takes
  DType dtype = DType::f32;       // format of most of the matrices' bytes
  std::uint64_t fingerprint = 0;  // see Model::fingerprint
  // Bytes that a decode step of one token reads: everything but the embedding's other rows and the other experts.
  std::int64_t bytes_per_step() const;
};

// In the loader's check, everything comes back empty.
DecoderWeights load_decoder_weights(const ModelSpec& spec, WeightLoader& loader);

}  // namespace minisgl
