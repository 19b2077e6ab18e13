// Activations of a decoder's step: every buffer with its shape, and what they take together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/hardware.h"
#include "kernels/ops.h"
#include "models/model_shard.h"
#include "models/model_spec.h"

namespace minisgl {

// A device's buffer that grows to powers of two rows, so steps of changing size soon stop allocating.
class RowBuffer {
 public:
  RowBuffer(DType dtype, std::int64_t width) : dtype_(dtype), width_(width) {}
  void reserve(Hardware& device, std::int64_t num_rows);
  std::int64_t bytes_for(std::int64_t num_rows) const;  // what a buffer takes that was reserved for so many rows
  Tensor rows(std::int64_t num_rows) { return {data_.data(), dtype_, num_rows, width_, &writes_}; }

 private:
  DType dtype_;
  std::int64_t width_;
  WriteCount writes_ = 0;
  DeviceBuffer data_;
};

// What experts compute in (Ops::experts), for powers of two rows. Nothing where a model has none.
class ExpertScratch {
 public:
  ExpertScratch(const Ops& ops, const ModelSpec& spec, const ModelShard& shard);
  void reserve(Hardware& device, std::int64_t num_rows);
  std::int64_t bytes_for(std::int64_t num_rows) const;
  std::span<std::byte> bytes() { return {data_.data(), data_.size()}; }

 private:
  const Ops& ops_;
  ExpertsShape shape_;
  RouterRule rule_;
  DeviceBuffer data_;
};

// Kept between steps. A step of n rows writes the first n rows of each buffer. "act" is the device's activation dtype.
struct Workspace {
  Workspace(const ModelSpec& spec, const ModelShard& shard, int num_ranks, DType activation_dtype);

  // Makes room for steps of so many rows, of which logits or hidden states are needed of num_wanted, logits of
  // num_logits.
  void reserve(Hardware& device, std::int64_t num_rows, std::int64_t num_wanted, std::int64_t num_logits);
  // Bytes that reserve() allocates in all.
  std::int64_t bytes_for(std::int64_t num_rows, std::int64_t num_wanted, std::int64_t num_logits) const;

  RowBuffer residual;        // [num_rows, hidden_size] act
  RowBuffer normed;          // [num_rows, hidden_size] act
  RowBuffer delta;           // [num_rows, hidden_size] act: what attention or MLP adds to the residual
  RowBuffer qkv;             // [num_rows, (num_heads + 2 * num_kv_heads) * head_dim] act
  RowBuffer attention;       // [num_rows, num_heads * head_dim] act
  RowBuffer gate_up;         // [num_rows, 2 * intermediate_size] act
  RowBuffer activated;       // [num_rows, intermediate_size] act
  RowBuffer last_residual;   // [num_wanted, hidden_size] act: the rows whose logits or hidden states are needed
  RowBuffer last_attention;  // [num_wanted, num_heads * head_dim] act
  RowBuffer logits;          // [num_logits, vocab_size] f32
  // With several ranks: this rank's logits, and those of all ranks as they are gathered.
  RowBuffer logits_part;   // [num_logits, rank's vocab_size] f32
  RowBuffer logits_parts;  // [num_logits, num_ranks * rank's vocab_size] f32

 private:
  template <typename Self, typename Visit>
  static void visit(Self& self, std::int64_t num_rows, std::int64_t num_wanted, std::int64_t num_logits, Visit visit);

  int num_ranks_;
};

}  // namespace minisgl
