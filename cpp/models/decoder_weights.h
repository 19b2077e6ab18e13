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
  LinearColParallelMerged gate_up;     // hidden -> 2 * intermediate
  LinearRowParallel down;              // intermediate -> hidden
  DeviceBuffer mlp_output_norm;        // [hidden_size] or empty
};

struct DecoderWeights {
  std::shared_ptr<const Matrix> embedding;  // [vocab_size, hidden_size]
  std::shared_ptr<const Matrix> head;       // the same; the embedding itself when tied
  DeviceBuffer final_norm;                  // [hidden_size]
  std::vector<DecoderLayerWeights> layers;
  DType dtype = DType::f32;       // format of most of the matrices' bytes
  std::uint64_t fingerprint = 0;  // see Model::fingerprint
  // Bytes that a decode step of one token reads: everything but the embedding's other rows.
  std::int64_t bytes_per_step() const;
};

// In the loader's check, everything comes back empty.
DecoderWeights load_decoder_weights(const ModelSpec& spec, WeightLoader& loader);

}  // namespace minisgl
