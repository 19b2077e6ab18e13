// One list of buffers, both to reserve them and to say what they take.
#include "models/workspace.h"

#include <algorithm>
#include <bit>

namespace minisgl {

std::int64_t RowBuffer::bytes_for(std::int64_t num_rows) const {
  const auto capacity = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(num_rows)));
  return capacity * row_bytes(dtype_, width_);
}

void RowBuffer::reserve(Hardware& device, std::int64_t num_rows) {
  const auto bytes = static_cast<std::size_t>(bytes_for(num_rows));
  if (bytes <= data_.size()) return;
  data_ = device.allocate(bytes);
  ++writes_;
}

ExpertScratch::ExpertScratch(const Ops& ops, const ModelSpec& spec, const ModelShard& shard)
    : ops_(ops), shape_(experts_shape(spec, shard, 0)), rule_(router_rule(spec, nullptr)) {}

std::int64_t ExpertScratch::bytes_for(std::int64_t num_rows) const {
  if (shape_.num_experts == 0) return 0;
  const auto rows = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(num_rows)));
  return ops_.experts_scratch_bytes(shape_, rule_, rows);
}

void ExpertScratch::reserve(Hardware& device, std::int64_t num_rows) {
  const auto bytes = static_cast<std::size_t>(bytes_for(num_rows));
  if (bytes > data_.size()) data_ = device.allocate(bytes);
}

Workspace::Workspace(const ModelSpec& spec, const ModelShard& shard, int num_ranks, DType act)
    : residual(act, spec.hidden_size),
      normed(act, spec.hidden_size),
      delta(act, spec.hidden_size),
      qkv(act, (shard.num_heads + 2 * shard.num_kv_heads) * spec.head_dim),
      attention(act, shard.num_heads * spec.head_dim),
      gate_up(act, 2 * std::max(shard.intermediate_size, shard.shared_intermediate_size)),
      activated(act, std::max(shard.intermediate_size, shard.shared_intermediate_size)),
      last_residual(act, spec.hidden_size),
      last_attention(act, shard.num_heads * spec.head_dim),
      logits(DType::f32, spec.vocab_size),
      logits_part(DType::f32, shard.vocab_size),
      logits_parts(DType::f32, num_ranks * shard.vocab_size),
      num_ranks_(num_ranks) {}

// Calls visit(buffer, rows) for every buffer that such a step needs.
template <typename Self, typename Visit>
void Workspace::visit(Self& self, std::int64_t num_rows, std::int64_t num_wanted, std::int64_t num_logits,
                      Visit visit) {
  for (auto* buffer :
       {&self.residual, &self.normed, &self.delta, &self.qkv, &self.attention, &self.gate_up, &self.activated}) {
    visit(*buffer, num_rows);
  }
  if (num_wanted == 0) return;
  for (auto* buffer : {&self.last_residual, &self.last_attention}) visit(*buffer, num_wanted);
  if (num_logits == 0) return;
  visit(self.logits, num_logits);
  if (self.num_ranks_ == 1) return;
  for (auto* buffer : {&self.logits_part, &self.logits_parts}) visit(*buffer, num_logits);
}

void Workspace::reserve(Hardware& device, std::int64_t num_rows, std::int64_t num_wanted, std::int64_t num_logits) {
  visit(*this, num_rows, num_wanted, num_logits,
        [&](RowBuffer& buffer, std::int64_t rows) { buffer.reserve(device, rows); });
}

std::int64_t Workspace::bytes_for(std::int64_t num_rows, std::int64_t num_wanted, std::int64_t num_logits) const {
  std::int64_t bytes = 0;
  visit(*this, num_rows, num_wanted, num_logits,
        [&](const RowBuffer& buffer, std::int64_t rows) { bytes += buffer.bytes_for(rows); });
  return bytes;
}

}  // namespace minisgl
