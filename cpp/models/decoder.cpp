// The forward pass of a dense decoder (Llama's form) over one step.
#include "models/decoder.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "models/decoder_weights.h"
#include "models/rope_table.h"

namespace minisgl {
namespace {

// Activations of a step, kept between steps. A step of n rows writes the first n rows of each.
struct Workspace {
  AlignedBuffer residual;   // [num_rows, hidden_size] f32
  AlignedBuffer normed;     // [num_rows, hidden_size] f32
  AlignedBuffer delta;      // [num_rows, hidden_size] f32: what attention or MLP adds to the residual
  AlignedBuffer qkv;        // [num_rows, (num_heads + 2 * num_kv_heads) * head_dim] f32
  AlignedBuffer attention;  // [num_rows, num_heads * head_dim] f32
  AlignedBuffer gate_up;    // [num_rows, 2 * intermediate_size] f32
  AlignedBuffer activated;  // [num_rows, intermediate_size] f32
  AlignedBuffer logits;     // [num_logits, vocab_size] f32
  GemmWorkspace gemm;
};

// Room for num_rows rows; grows to powers of two, so steps of changing size soon stop allocating.
float* rows_of(AlignedBuffer& buffer, std::int64_t num_rows, std::int64_t width) {
  buffer.reserve(std::bit_ceil(static_cast<std::size_t>(num_rows)) * static_cast<std::size_t>(width) * sizeof(float));
  return buffer.as<float>();
}

// Moves the chosen rows to the front, in place: `rows` ascends, so a row is never overwritten before it is moved.
void keep_rows(float* data, std::int64_t width, std::span<const std::int32_t> rows) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::memmove(data + static_cast<std::int64_t>(i) * width, data + std::int64_t{rows[i]} * width,
                 static_cast<std::size_t>(width) * sizeof(float));
  }
}

void check_batch(const StepBatch& batch, const ModelSpec& spec) {
  const auto num_rows = std::ssize(batch.tokens);
  MINISGL_CHECK(num_rows > 0 && std::ssize(batch.positions) == num_rows);
  for (const std::int32_t token : batch.tokens) MINISGL_CHECK(token >= 0 && token < spec.vocab_size, "token ", token);
  for (const std::int32_t position : batch.positions) MINISGL_CHECK(position >= 0, "position ", position);
  std::int64_t covered = 0;
  for (const ops::SequenceRows& sequence : batch.sequences) {
    MINISGL_CHECK(sequence.first_row == covered && sequence.num_rows > 0);
    covered += sequence.num_rows;
  }
  MINISGL_CHECK(covered == num_rows, covered, " rows in sequences, ", num_rows, " tokens");
  std::int32_t previous = -1;
  for (const std::int32_t row : batch.logit_rows) {
    MINISGL_CHECK(row > previous && row < num_rows, "logit row ", row);
    previous = row;
  }
}

class Decoder final : public Model {
 public:
  Decoder(ModelSpec spec, DecoderWeights weights, ThreadPool& pool)
      : spec_(std::move(spec)),
        weights_(std::move(weights)),
        embedding_(weights_.embedding),
        head_(weights_.head),
        rope_(spec_.rope),
        eps_(static_cast<float>(spec_.rms_norm_eps)),
        pool_(pool) {}

  const ModelSpec& spec() const override { return spec_; }
  std::int64_t weight_bytes() const override { return weights_.bytes_per_step(); }
  DType weight_dtype() const override { return weights_.dtype; }

  std::span<float> forward(const StepBatch& batch, KvCache& cache) override {
    check_batch(batch, spec_);
    std::int64_t num_rows = std::ssize(batch.tokens);
    const std::int64_t num_logits = std::ssize(batch.logit_rows);
    reserve_workspace(batch);

    auto* residual = workspace_.residual.as<float>();
    auto* normed = workspace_.normed.as<float>();
    auto* delta = workspace_.delta.as<float>();
    embedding_.forward(batch.tokens, residual, pool_);
    ops::rms_norm(pool_, residual, weights_.layers.front().input_norm.data(), eps_, num_rows, spec_.hidden_size,
                  normed);
    for (std::int64_t i = 0; i < spec_.num_layers; ++i) {
      const DecoderLayerWeights& layer = weights_.layers[static_cast<std::size_t>(i)];
      const bool is_last = i + 1 == spec_.num_layers;
      attention(layer, i, batch, cache, is_last && num_logits == 0);
      if (is_last) {
        // From here on only the rows whose logits are wanted matter.
        if (num_logits == 0) return {};
        keep_rows(residual, spec_.hidden_size, batch.logit_rows);
        keep_rows(workspace_.attention.as<float>(), spec_.num_heads * spec_.head_dim, batch.logit_rows);
        num_rows = num_logits;
      }
      // With several ranks, delta is summed over them here and after the MLP: the two all-reduces of a layer.
      layer.attention_output.forward(workspace_.attention.as<float>(), num_rows, delta, workspace_.gemm, pool_);
      add_norm(layer.post_attention_norm, num_rows);
      mlp(layer, num_rows);
      add_norm(is_last ? weights_.final_norm : weights_.layers[static_cast<std::size_t>(i + 1)].input_norm, num_rows);
    }
    auto* logits = workspace_.logits.as<float>();
    head_.forward(normed, num_logits, logits, workspace_.gemm, pool_);
    return {logits, static_cast<std::size_t>(num_logits * spec_.vocab_size)};
  }

 private:
  void reserve_workspace(const StepBatch& batch) {
    const std::int64_t num_rows = std::ssize(batch.tokens);
    rows_of(workspace_.residual, num_rows, spec_.hidden_size);
    rows_of(workspace_.normed, num_rows, spec_.hidden_size);
    rows_of(workspace_.delta, num_rows, spec_.hidden_size);
    rows_of(workspace_.qkv, num_rows, (spec_.num_heads + 2 * spec_.num_kv_heads) * spec_.head_dim);
    rows_of(workspace_.attention, num_rows, spec_.num_heads * spec_.head_dim);
    rows_of(workspace_.gate_up, num_rows, 2 * spec_.intermediate_size);
    rows_of(workspace_.activated, num_rows, spec_.intermediate_size);
    if (!batch.logit_rows.empty()) rows_of(workspace_.logits, std::ssize(batch.logit_rows), spec_.vocab_size);
    rope_.reserve(std::int64_t{*std::ranges::max_element(batch.positions)} + 1, pool_);
  }

  // normed -> attention, through the cache. `store_only` leaves out the attention itself.
  void attention(const DecoderLayerWeights& layer, std::int64_t index, const StepBatch& batch, KvCache& cache,
                 bool store_only) {
    const std::int64_t num_rows = std::ssize(batch.tokens);
    const ops::QkvView qkv{.data = workspace_.qkv.as<float>(),
                           .num_rows = num_rows,
                           .num_heads = static_cast<int>(spec_.num_heads),
                           .num_kv_heads = static_cast<int>(spec_.num_kv_heads),
                           .head_dim = static_cast<int>(spec_.head_dim)};
    layer.qkv.forward(workspace_.normed.as<float>(), num_rows, qkv.data, workspace_.gemm, pool_);
    if (spec_.qk_norm) ops::qk_norm(pool_, qkv, layer.query_norm.data(), layer.key_norm.data(), eps_);
    ops::rope(pool_, qkv, batch.positions.data(), rope_.data(), static_cast<int>(spec_.rope.rotary_dim));
    const ops::KvLayer kv = cache.layer(index);
    ops::store_kv(pool_, qkv, batch.sequences, kv);
    if (store_only) return;
    const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec_.head_dim)));
    ops::paged_attention(pool_, qkv, batch.sequences, kv, scale, spec_.window[static_cast<std::size_t>(index)],
                         workspace_.attention.as<float>());
  }

  // normed -> delta.
  void mlp(const DecoderLayerWeights& layer, std::int64_t num_rows) {
    auto* gate_up = workspace_.gate_up.as<float>();
    auto* activated = workspace_.activated.as<float>();
    layer.gate_up.forward(workspace_.normed.as<float>(), num_rows, gate_up, workspace_.gemm, pool_);
    ops::silu_mul(pool_, gate_up, num_rows, spec_.intermediate_size, activated);
    layer.down.forward(activated, num_rows, workspace_.delta.as<float>(), workspace_.gemm, pool_);
  }

  // residual += delta, normed = norm of the residual.
  void add_norm(const std::vector<float>& weight, std::int64_t num_rows) {
    ops::add_rms_norm(pool_, workspace_.residual.as<float>(), workspace_.delta.as<float>(), weight.data(), eps_,
                      num_rows, spec_.hidden_size, workspace_.normed.as<float>());
  }

  ModelSpec spec_;
  DecoderWeights weights_;
  VocabParallelEmbedding embedding_;
  VocabParallelHead head_;
  RopeTable rope_;
  float eps_;
  ThreadPool& pool_;
  Workspace workspace_;
};

}  // namespace

std::unique_ptr<Model> make_decoder(ModelSpec spec, DecoderWeights weights, ThreadPool& pool) {
  return std::make_unique<Decoder>(std::move(spec), std::move(weights), pool);
}

}  // namespace minisgl
