// One step of a decoder.
#include "models/decoder.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "core/error.h"
#include "models/adapter_loader.h"
#include "models/model_shard.h"
#include "models/rope_table.h"
#include "models/workspace.h"

namespace minisgl {
namespace {

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
  for (const std::span<const std::int32_t> wanted : {batch.logit_rows, batch.hidden_rows}) {
    std::int32_t previous = -1;
    for (const std::int32_t row : wanted) {
      MINISGL_CHECK(row > previous && row < num_rows, "wanted row ", row);
      previous = row;
    }
  }
}

bool has_adapters(const StepBatch& batch) {
  return std::ranges::any_of(batch.sequences, [](const auto& sequence) { return sequence.adapter != nullptr; });
}

class Decoder final : public Model {
 public:
  Decoder(ModelSpec spec, DecoderWeights weights, Device& device, ExpertCut expert_cut)
      : spec_(std::move(spec)),
        shard_(shard_of(spec_, device.num_ranks(), {}, expert_cut)),
        weights_(std::move(weights)),
        embedding_(weights_.embedding, device.rank() * shard_.vocab_size),
        head_(head_of(weights_, device)),
        rope_(spec_.rope, spec_.max_position, device),
        query_rope_(make_query_rope(spec_, device)),
        sliding_rope_(make_sliding_rope(spec_, device)),
        shape_{static_cast<int>(shard_.num_heads), static_cast<int>(shard_.num_kv_heads),
               static_cast<int>(spec_.head_dim)},
        device_(device),
        workspace_(spec_, shard_, device.num_ranks(), device.activation_dtype()),
        expert_scratch_(device, spec_, shard_) {}

  const ModelSpec& spec() const override { return spec_; }
  std::int64_t weight_bytes() const override { return weights_.bytes_per_step(); }
  DType weight_dtype() const override { return weights_.dtype; }
  std::uint64_t fingerprint() const override { return weights_.fingerprint; }

  std::shared_ptr<const Adapter> load_adapter(const std::string& path, std::int64_t max_rank) const override {
    return minisgl::load_adapter(path, max_rank, spec_, weights_.adapter_targets, weights_.dtype, shard_.expert_cut,
                                 device_);
  }

  std::int64_t stacked_rows() const override { return stack_ != nullptr ? stack_->most_rows() : 0; }

  void set_context(std::int64_t num_positions) override {
    for_each_rope(*this, [&](RopeTable& table) { table.set_context(num_positions); });
  }
  void reserve(const StepLimits& limits) override {
    reserve_rows(limits.rows, limits.logits + limits.hidden, limits.logits);
    for_each_rope(*this, [&](RopeTable& table) { table.reserve(limits.positions); });
  }
  std::int64_t workspace_bytes(const StepLimits& limits) const override {
    std::int64_t bytes = workspace_.bytes_for(limits.rows, limits.logits + limits.hidden, limits.logits) +
                         expert_scratch_.bytes_for(limits.rows);
    for_each_rope(*this, [&](const RopeTable& table) { bytes += table.bytes_for(limits.positions); });
    return bytes;
  }

  Tensor forward(const StepBatch& batch, KvCache& cache) override {
    check_batch(batch, spec_, device_.runs_ahead());
    MINISGL_CHECK(batch.page_size == cache.page_size(), "page tables of ", batch.page_size);
    const std::int64_t num_logits = std::ssize(batch.logit_rows), num_hidden = std::ssize(batch.hidden_rows);
    const std::int64_t num_wanted = num_logits + num_hidden;
    const std::int64_t num_rows = std::ssize(batch.tokens);
    reserve_rows(std::max(num_rows, num_wanted), num_wanted, num_logits);
    reserve_positions(batch);

    Tensor residual = workspace_.residual.rows(num_rows);
    embed(residual);
    if (num_hidden == 0 && num_logits == num_rows && !has_adapters(batch) && stack_of(cache) != nullptr &&
        stack_->takes(num_rows)) {
      return logits(
          stack_->run(residual, rope_.data(), norm_by(weights_.final_norm), workspace_.normed.rows(num_rows)));
    }
    Tensor attended = workspace_.attention.rows(num_rows);
    LinearInput normed = norm_rows(residual, weights_.layers.front().attention_input_norm);
    for (std::int64_t i = 0; i < spec_.num_layers; ++i) {
      const DecoderLayerWeights& layer = weights_.layers[static_cast<std::size_t>(i)];
      const bool is_last = i + 1 == spec_.num_layers;
      attention(layer, i, normed, cache, is_last && num_wanted == 0);
      if (is_last) {
        // From here on only the rows matter that something is wanted of.
        if (num_wanted == 0) return {};
        if (num_hidden > 0 || num_logits < num_rows) {
          residual = keep_wanted_rows(residual, workspace_.last_residual, num_wanted);
          attended = keep_wanted_rows(attended, workspace_.last_attention, num_wanted);
          if (spec_.parallel_mlp) normed = norm_rows(residual, layer.attention_input_norm);
        }
      }
      normed = add_both(
          layer, normed, attended, residual,
          is_last ? weights_.final_norm : weights_.layers[static_cast<std::size_t>(i + 1)].attention_input_norm);
    }
    if (num_hidden == 0) return logits(normed);
    // The rows of logits come first.
    const Tensor rows = device_.plain_rows(normed);
    const Tensor logit_rows{rows.data, rows.dtype, num_logits, rows.cols, rows.writes};
    device_.keep_hidden({rows.data + logit_rows.nbytes(), rows.dtype, num_hidden, rows.cols, rows.writes});
    return num_logits > 0 ? logits(logit_rows) : Tensor{};
  }

  void rehearse(const StepBatch& batch, KvCache& cache) override {
    check_batch(batch, spec_, device_.runs_ahead());
    const std::int64_t num_rows = std::ssize(batch.tokens);
    reserve_rows(num_rows, 0, 0);
    reserve_positions(batch);
    const DecoderLayerWeights& layer = weights_.layers.front();
    const Tensor residual = workspace_.residual.rows(num_rows);
    embed(residual);
    const LinearInput normed = norm_rows(residual, layer.attention_input_norm);
    attention(layer, 0, normed, cache, false);
    add_both(layer, normed, workspace_.attention.rows(num_rows), residual, layer.attention_input_norm);
  }

 private:
  static VocabParallelHead head_of(const DecoderWeights& weights, Device& device) {
    std::vector<Projection> outputs;
    outputs.push_back({weights.head, {}});
    return VocabParallelHead(device.make_linear(std::move(outputs)));
  }

  // An empty weight: no norm.
  Norm norm_by(const DeviceBuffer& weight) const {
    return {weight.as<float>(), static_cast<float>(spec_.norm_eps), spec_.centered_norms};
  }
  LinearInput norm_rows(Tensor residual, const DeviceBuffer& weight) {
    return device_.rms_norm(residual, norm_by(weight), workspace_.normed.rows(residual.rows));
  }

  static std::optional<RopeTable> make_query_rope(const ModelSpec& spec, Device& device) {
    if (spec.rope.query_growth == 0.0) return std::nullopt;
    return std::make_optional<RopeTable>(spec.rope, spec.max_position, device, true);
  }
  static std::optional<RopeTable> make_sliding_rope(const ModelSpec& spec, Device& device) {
    if (!spec.sliding_rope) return std::nullopt;
    return std::make_optional<RopeTable>(*spec.sliding_rope, spec.max_position, device);
  }
  template <typename Self, typename Visit>
  static void for_each_rope(Self& self, Visit visit) {
    visit(self.rope_);
    for (auto* table : {&self.query_rope_, &self.sliding_rope_}) {
      if (*table) visit(**table);
    }
  }

  void reserve_rows(std::int64_t num_rows, std::int64_t num_wanted, std::int64_t num_logits) {
    workspace_.reserve(device_, num_rows, num_wanted, num_logits);
    expert_scratch_.reserve(device_, num_rows);
  }

  void reserve_positions(const StepBatch& batch) {
    const std::int64_t count = std::int64_t{*std::ranges::max_element(batch.positions)} + 1;
    for_each_rope(*this, [&](RopeTable& table) { table.reserve(count); });
  }

  Tensor keep_wanted_rows(Tensor all, RowBuffer& kept, std::int64_t num_wanted) {
    device_.gather_wanted_rows(all, kept.rows(num_wanted));
    return kept.rows(num_wanted);
  }

  // The step's tokens -> residual.
  void embed(Tensor residual) {
    embedding_.forward(device_, residual, static_cast<float>(spec_.embedding_scale));
    device_.sum_over_ranks(residual);
  }

  // The layers as one operation over this cache; null where the device has none for them.
  LayerStack* stack_of(const KvCache& cache) {
    const ops::KvLayer last = cache.layer(spec_.num_layers - 1);  // where it lies and ends says where the others do
    const bool is_stacked = stacked_ && stacked_->keys == last.keys && stacked_->values == last.values &&
                            stacked_->page_size == last.page_size && stacked_->dtype == last.dtype;
    if (!is_stacked) {
      stack_ = is_plain() ? device_.make_layer_stack(stacked_layers(cache)) : nullptr;
      stacked_ = last;
    }
    return stack_.get();
  }
  // Whether the layers have Llama's form.
  bool is_plain() const {
    const auto is_zero = [](std::int32_t window) { return window == 0; };
    return device_.num_ranks() == 1 && !spec_.parallel_mlp && !spec_.centered_norms &&
           spec_.activation == Activation::silu && spec_.qk_norm != ModelSpec::QueryKeyNorm::all_heads &&
           spec_.norms.attention_output.empty() && spec_.norms.mlp_output.empty() &&
           !spec_.norms.attention_input.empty() && !spec_.norms.mlp_input.empty() && !query_rope_ && !sliding_rope_ &&
           spec_.rotates.empty() && spec_.score_cap == 0.0 && std::ranges::all_of(spec_.window, is_zero) &&
           std::ranges::all_of(weights_.layers, [](const DecoderLayerWeights& layer) {
             return layer.experts == nullptr && layer.sinks.size() == 0;
           });
  }
  StackedLayers stacked_layers(const KvCache& cache) const {
    StackedLayers stacked{.layers = {},
                          .hidden = spec_.hidden_size,
                          .intermediate = spec_.intermediate_size,
                          .shape = shape_,
                          .norm_eps = static_cast<float>(spec_.norm_eps),
                          .rotary_dim = static_cast<int>(spec_.rope.rotary_dim),
                          .score_scale = static_cast<float>(score_scale())};
    for (std::int64_t i = 0; i < spec_.num_layers; ++i) {
      const DecoderLayerWeights& layer = weights_.layers[static_cast<std::size_t>(i)];
      stacked.layers.push_back({.qkv = &layer.qkv.weights(),
                                .attention_output = &layer.attention_output.weights(),
                                .gate_up = &layer.gate_up.weights(),
                                .down = &layer.down.weights(),
                                .input_norm = layer.attention_input_norm.as<float>(),
                                .mlp_norm = layer.mlp_input_norm.as<float>(),
                                .query_norm = layer.query_norm.as<float>(),
                                .key_norm = layer.key_norm.as<float>(),
                                .cache = cache.layer(i)});
    }
    return stacked;
  }
  double score_scale() const {
    return spec_.score_scale != 0.0 ? spec_.score_scale : 1.0 / std::sqrt(static_cast<double>(spec_.head_dim));
  }

  // normed -> attention, through the cache. `store_only` leaves out the attention itself.
  void attention(const DecoderLayerWeights& layer, std::int64_t index, const LinearInput& normed, KvCache& cache,
                 bool store_only) {
    const std::int64_t num_rows = normed.rows();
    const Tensor qkv = workspace_.qkv.rows(num_rows);
    const ops::KvLayer kv = cache.layer(index);
    const bool sliding = sliding_rope_ && spec_.window[static_cast<std::size_t>(index)] != 0;
    layer.qkv.forward_heads(device_, normed, qkv, shape_,
                            {.query_norm = layer.query_norm.as<float>(),
                             .key_norm = layer.key_norm.as<float>(),
                             .norms_all_heads = spec_.qk_norm == ModelSpec::QueryKeyNorm::all_heads,
                             .eps = static_cast<float>(spec_.norm_eps),
                             .rope_table = (sliding ? *sliding_rope_ : rope_).data(),
                             .query_rope_table = query_rope_ ? query_rope_->data() : nullptr,
                             .rotary_dim = rotates(index) ? static_cast<int>(spec_.rope.rotary_dim) : 0},
                            kv);
    if (store_only) return;
    const ScoreRule scores(static_cast<float>(score_scale()), static_cast<float>(spec_.score_cap),
                           layer.sinks.as<float>());
    device_.paged_attention(qkv, shape_, kv, scores, spec_.window[static_cast<std::size_t>(index)],
                            workspace_.attention.rows(num_rows));
  }

  bool rotates(std::int64_t layer) const {
    return spec_.rotates.empty() || spec_.rotates[static_cast<std::size_t>(layer)] != 0;
  }

  // The two sums over ranks of a layer, whose `normed` rows were attended to: of what attention adds to the residual,
  // and of what the MLP adds. Returns what comes behind the layer, `next_norm` of the residual.
  LinearInput add_both(const DecoderLayerWeights& layer, const LinearInput& normed, Tensor attended, Tensor residual,
                       const DeviceBuffer& next_norm) {
    const auto add_attention = [&] {
      return add_norm(layer.attention_output, attended, residual, layer.attention_output_norm, layer.mlp_input_norm);
    };
    if (layer.experts != nullptr) return add_experts(layer, add_attention(), residual, next_norm);
    if (!spec_.parallel_mlp) {
      return add_norm(layer.down, activate(layer, add_attention()), residual, layer.mlp_output_norm, next_norm);
    }
    const LinearInput activated = activate(layer, normed);
    add_attention();
    return add_norm(layer.down, activated, residual, layer.mlp_output_norm, next_norm);
  }

  // residual += the sum over ranks of what the experts make of normed. Returns the norm `next_norm` of the residual.
  LinearInput add_experts(const DecoderLayerWeights& layer, const LinearInput& normed, Tensor residual,
                          const DeviceBuffer& next_norm) {
    const Tensor delta = workspace_.delta.rows(normed.rows());
    const Tensor rows = workspace_.normed.rows(normed.rows());
    const RouterRule rule = router_rule(spec_, layer.choice_bias.as<float>());
    const ExpertLayer experts{*layer.experts, *layer.router, rule, spec_.activation};
    if (rule.shared == RouterRule::Shared::none && layer.mlp_output_norm.size() == 0) {
      return device_.experts_add_norm(experts, normed, expert_scratch_.bytes(), delta, residual, norm_by(next_norm),
                                      rows);
    }
    if (layer.down.has_weights()) layer.down.forward(device_, activate(layer, normed), delta);
    device_.experts(experts, normed, expert_scratch_.bytes(), delta);
    if (layer.mlp_output_norm.size() == 0)
      return device_.reduce_add_rms_norm(residual, delta, norm_by(next_norm), rows);
    return device_.reduce_norm_add_rms_norm(residual, delta, norm_by(layer.mlp_output_norm), norm_by(next_norm), rows);
  }

  // The hidden layer of the MLP of normed.
  LinearInput activate(const DecoderLayerWeights& layer, const LinearInput& normed) {
    Tensor gate_up = workspace_.gate_up.rows(normed.rows()), activated = workspace_.activated.rows(normed.rows());
    gate_up.cols = layer.gate_up.out_features();  // a shared expert's, or an MLP's
    activated.cols = gate_up.cols / 2;
    return layer.gate_up.forward_gated(device_, normed, gate_up, activated, spec_.activation);
  }

  // residual += the norm `added` of the sum over ranks of x through `weights`. Returns the norm `next` of the residual.
  LinearInput add_norm(const LinearRowParallel& weights, const LinearInput& x, Tensor residual,
                       const DeviceBuffer& added, const DeviceBuffer& next) {
    const Tensor delta = workspace_.delta.rows(x.rows()), normed = workspace_.normed.rows(x.rows());
    if (added.size() == 0) return weights.forward_add_norm(device_, x, delta, residual, norm_by(next), normed);
    weights.forward(device_, x, delta);
    return device_.reduce_norm_add_rms_norm(residual, delta, norm_by(added), norm_by(next), normed);
  }

  // normed -> logits of the whole vocabulary, on every rank.
  Tensor logits(const LinearInput& normed) {
    const Tensor logits = products_with_head(normed);
    if (spec_.logit_scale != 1.0 || spec_.logit_cap != 0.0) {
      device_.scale_logits(logits, static_cast<float>(spec_.logit_scale), static_cast<float>(spec_.logit_cap));
    }
    return logits;
  }
  Tensor products_with_head(const LinearInput& normed) {
    const std::int64_t num_rows = normed.rows();
    const Tensor logits = workspace_.logits.rows(num_rows);
    if (device_.num_ranks() == 1) {
      head_.forward(device_, normed, logits);
      return logits;
    }
    const Tensor part = workspace_.logits_part.rows(num_rows);
    Tensor parts = workspace_.logits_parts.rows(num_rows);
    head_.forward(device_, normed, part);
    parts = {parts.data, parts.dtype, device_.num_ranks() * num_rows, part.cols};
    device_.gather_columns(part, parts, logits);
    return logits;
  }

  ModelSpec spec_;
  ModelShard shard_;
  DecoderWeights weights_;
  VocabParallelEmbedding embedding_;
  VocabParallelHead head_;
  RopeTable rope_;
  std::optional<RopeTable> query_rope_;    // of queries, where they grow with their position
  std::optional<RopeTable> sliding_rope_;  // of layers with a window, where theirs is another
  HeadShape shape_;
  Device& device_;
  Workspace workspace_;
  ExpertScratch expert_scratch_;
  std::optional<ops::KvLayer> stacked_;  // the last layer's cache of those that were stacked
  std::unique_ptr<LayerStack> stack_;
};

}  // namespace

std::unique_ptr<Model> make_decoder(ModelSpec spec, DecoderWeights weights, Device& device, ExpertCut expert_cut) {
  return std::make_unique<Decoder>(std::move(spec), std::move(weights), device, expert_cut);
}

}  // namespace minisgl
