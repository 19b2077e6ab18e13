// The forward pass of a dense decoder (Llama's form) over one step.
#include "models/decoder.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "core/error.h"
#include "models/decoder_weights.h"
#include "models/rope_table.h"

namespace minisgl {
namespace {

// A device's buffer that grows to powers of two rows, so steps of changing size soon stop allocating.
class RowBuffer {
 public:
  RowBuffer(DType dtype, std::int64_t width) : dtype_(dtype), width_(width) {}
  void reserve(Ops& device, std::int64_t num_rows) {
    const auto capacity = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(num_rows)));
    const auto bytes = static_cast<std::size_t>(capacity * row_bytes(dtype_, width_));
    if (bytes > data_.size()) data_ = device.allocate(bytes);
  }
  Tensor rows(std::int64_t num_rows) const { return {data_.data(), dtype_, num_rows, width_}; }

 private:
  DType dtype_;
  std::int64_t width_;
  DeviceBuffer data_;
};

// Activations of a step, kept between steps. A step of n rows writes the first n rows of each.
struct Workspace {
  Workspace(const ModelSpec& spec, DType dtype)
      : residual(dtype, spec.hidden_size),
        normed(dtype, spec.hidden_size),
        delta(dtype, spec.hidden_size),
        qkv(dtype, (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim),
        attention(dtype, spec.num_heads * spec.head_dim),
        gate_up(dtype, 2 * spec.intermediate_size),
        activated(dtype, spec.intermediate_size),
        last_residual(dtype, spec.hidden_size),
        last_attention(dtype, spec.num_heads * spec.head_dim),
        logits(DType::f32, spec.vocab_size) {}

  RowBuffer residual, normed;
  RowBuffer delta;  // what attention or MLP adds to the residual
  RowBuffer qkv, attention, gate_up, activated;
  RowBuffer last_residual, last_attention;  // of the rows whose logits are wanted
  RowBuffer logits;                         // [num_logits, vocab_size]
};

// The device has checked the tokens that it alone knows.
void check_batch(const StepBatch& batch, const ModelSpec& spec, bool runs_ahead) {
  const auto num_rows = std::ssize(batch.tokens);
  MINISGL_CHECK(num_rows > 0 && std::ssize(batch.positions) == num_rows);
  for (const std::int32_t token : batch.tokens) {
    MINISGL_CHECK((token >= 0 || runs_ahead) && token < spec.vocab_size, "token ", token);
  }
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
  Decoder(ModelSpec spec, DecoderWeights weights, Ops& device)
      : spec_(std::move(spec)),
        weights_(std::move(weights)),
        embedding_(weights_.embedding),
        head_(head_of(weights_, device)),
        rope_(spec_.rope, device),
        eps_(static_cast<float>(spec_.rms_norm_eps)),
        shape_{static_cast<int>(spec_.num_heads), static_cast<int>(spec_.num_kv_heads),
               static_cast<int>(spec_.head_dim)},
        device_(device),
        workspace_(spec_, device.activation_dtype()) {}

  const ModelSpec& spec() const override { return spec_; }
  std::int64_t weight_bytes() const override { return weights_.bytes_per_step(); }
  DType weight_dtype() const override { return weights_.dtype; }

  void reserve(const StepLimits& limits) override { reserve_workspace(limits.rows, limits.logits, limits.positions); }

  Tensor forward(const StepBatch& batch, KvCache& cache) override {
    check_batch(batch, spec_, device_.runs_ahead());
    MINISGL_CHECK(batch.page_size == cache.page_size(), "page tables of ", batch.page_size);
    const std::int64_t num_logits = std::ssize(batch.logit_rows);
    reserve_workspace(std::ssize(batch.tokens), std::ssize(batch.logit_rows),
                      std::int64_t{*std::ranges::max_element(batch.positions)} + 1);

    std::int64_t num_rows = std::ssize(batch.tokens);
    Tensor residual = workspace_.residual.rows(num_rows);
    Tensor attended = workspace_.attention.rows(num_rows);
    embedding_.forward(device_, residual);
    for (std::int64_t i = 0; i < spec_.num_layers; ++i) {
      const DecoderLayerWeights& layer = weights_.layers[static_cast<std::size_t>(i)];
      const bool is_last = i + 1 == spec_.num_layers;
      attention(layer, i, residual, cache, is_last && num_logits == 0);
      if (is_last) {
        // From here on only the rows whose logits are wanted matter.
        if (num_logits == 0) return {};
        residual = keep_logit_rows(residual, workspace_.last_residual, num_logits);
        attended = keep_logit_rows(attended, workspace_.last_attention, num_logits);
        num_rows = num_logits;
      }
      // With several ranks, delta is summed over them here and after the MLP: the two all-reduces of a layer.
      layer.attention_output.forward(device_, attended, workspace_.delta.rows(num_rows), residual);
      mlp(layer, residual);
    }
    const Tensor logits = workspace_.logits.rows(num_logits);
    head_.forward(device_, residual, norm_of(weights_.final_norm), workspace_.normed.rows(num_logits), logits);
    return logits;
  }

 private:
  static VocabParallelHead head_of(const DecoderWeights& weights, Ops& device) {
    std::vector<Projection> outputs;
    outputs.push_back({weights.head, {}});
    return VocabParallelHead(device.make_linear(std::move(outputs)));
  }

  void reserve_workspace(std::int64_t num_rows, std::int64_t num_logits, std::int64_t num_positions) {
    for (RowBuffer* buffer : {&workspace_.residual, &workspace_.normed, &workspace_.delta, &workspace_.qkv,
                              &workspace_.attention, &workspace_.gate_up, &workspace_.activated}) {
      buffer->reserve(device_, num_rows);
    }
    if (num_logits > 0) {
      for (RowBuffer* buffer : {&workspace_.last_residual, &workspace_.last_attention, &workspace_.logits}) {
        buffer->reserve(device_, num_logits);
      }
    }
    rope_.reserve(num_positions);
  }

  Tensor keep_logit_rows(Tensor all, const RowBuffer& kept, std::int64_t num_logits) {
    if (num_logits == all.rows) return all;
    device_.gather_logit_rows(all, kept.rows(num_logits));
    return kept.rows(num_logits);
  }

  // residual -> attention, through the cache. `store_only` leaves out the attention itself.
  void attention(const DecoderLayerWeights& layer, std::int64_t index, Tensor residual, KvCache& cache,
                 bool store_only) {
    const std::int64_t num_rows = residual.rows;
    const Tensor qkv = workspace_.qkv.rows(num_rows);
    layer.qkv.forward(device_, residual, norm_of(layer.input_norm), workspace_.normed.rows(num_rows), qkv);
    const ops::KvLayer kv = cache.layer(index);
    device_.store_heads(qkv, shape_,
                        {.query_norm = layer.query_norm.as<float>(),
                         .key_norm = layer.key_norm.as<float>(),
                         .eps = eps_,
                         .rope_table = rope_.data(),
                         .rotary_dim = static_cast<int>(spec_.rope.rotary_dim)},
                        kv);
    if (store_only) return;
    const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec_.head_dim)));
    device_.paged_attention(qkv, shape_, kv, scale, spec_.window[static_cast<std::size_t>(index)],
                            workspace_.attention.rows(num_rows));
  }

  // residual += MLP of its norm.
  void mlp(const DecoderLayerWeights& layer, Tensor residual) {
    const std::int64_t num_rows = residual.rows;
    const Tensor activated = workspace_.activated.rows(num_rows);
    layer.gate_up.forward_gated(device_, residual, norm_of(layer.post_attention_norm), workspace_.normed.rows(num_rows),
                                workspace_.gate_up.rows(num_rows), activated);
    layer.down.forward(device_, activated, workspace_.delta.rows(num_rows), residual);
  }

  Norm norm_of(const DeviceBuffer& weight) const { return {weight.as<float>(), eps_}; }

  ModelSpec spec_;
  DecoderWeights weights_;
  VocabParallelEmbedding embedding_;
  VocabParallelHead head_;
  RopeTable rope_;
  float eps_;
  HeadShape shape_;
  Ops& device_;
  Workspace workspace_;
};

}  // namespace

std::unique_ptr<Model> make_decoder(ModelSpec spec, DecoderWeights weights, Ops& device) {
  return std::make_unique<Decoder>(std::move(spec), std::move(weights), device);
}

}  // namespace minisgl
