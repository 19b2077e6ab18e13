// What one of several tensor-parallel ranks holds of a decoder.
#pragma once

#include <cstdint>

#include "models/model_spec.h"

namespace minisgl {

// Columns that a file stores together, in the matrices that ranks cut by columns: a cut lies between blocks.
struct ColumnBlocks {
  std::int64_t attention_output = 1;
  std::int64_t down = 1;
};

// The same on every rank.
struct ModelShard {
  std::int64_t num_heads;
  std::int64_t num_kv_heads;
  std::int64_t intermediate_size;
  std::int64_t vocab_size;  // rows of embedding and head, with padding (layers/sharding.h)
};

// Throws InputError that says which number of the model can't be split over so many ranks, and over how many it can.
ModelShard shard_of(const ModelSpec& spec, int num_ranks, const ColumnBlocks& blocks = {});

}  // namespace minisgl
