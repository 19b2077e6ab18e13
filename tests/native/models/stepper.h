// Runs steps of a model without a scheduler.
#pragma once

#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "models/decoder.h"
#include "models/decoder_weights.h"
#include "models/registry.h"
#include "models/weight_loader.h"

namespace minisgl::testing {

inline std::unique_ptr<Model> load(const WeightSource& source, Device& device) {
  ModelSpec spec = read_model_spec(source);
  WeightLoader loader(source, device, WeightLoader::Pass::load, Quantize::none, [](std::int64_t) {});
  DecoderWeights weights = load_decoder_weights(spec, loader);
  return make_decoder(std::move(spec), std::move(weights), device);
}

// One sequence's part of a step.
struct Part {
  std::vector<std::int32_t> tokens;
  std::int32_t start;
  const std::vector<std::int32_t>* pages;
};

class Stepper {
 public:
  Stepper(Device& device, Model& model, std::int64_t num_pages)
      : device_(device), model_(model), cache_(device, model.spec(), DType::f32, num_pages, 4) {}

  // Logits [rows, vocab] of the last token of each part.
  std::vector<float> step(const std::vector<Part>& parts, bool wants_logits = true) {
    std::vector<std::int32_t> tokens, positions, logit_rows;
    std::vector<ops::SequenceRows> sequences;
    for (const Part& part : parts) {
      sequences.push_back({static_cast<std::int32_t>(tokens.size()), static_cast<std::int32_t>(part.tokens.size()),
                           part.start, part.pages->data()});
      for (std::size_t i = 0; i < part.tokens.size(); ++i) {
        tokens.push_back(part.tokens[i]);
        positions.push_back(part.start + static_cast<std::int32_t>(i));
      }
      if (wants_logits) logit_rows.push_back(static_cast<std::int32_t>(tokens.size()) - 1);
    }
    const StepBatch batch{
        .tokens = tokens, .positions = positions, .sequences = sequences, .logit_rows = logit_rows, .page_size = 4};
    device_.begin_step(batch, {});
    const Tensor logits = model_.forward(batch, cache_);
    std::vector<float> values(static_cast<std::size_t>(logits.rows * logits.cols));
    device_.download(logits.data, std::as_writable_bytes(std::span(values)));
    return values;
  }

  // `count` tokens after `prompt`, drawn by the device's sampler.
  std::vector<std::int32_t> generate(const std::vector<std::int32_t>& prompt, const std::vector<std::int32_t>& pages,
                                     int count, const SamplingParams& params) {
    std::vector<std::int32_t> next = prompt, generated;
    std::int32_t start = 0;
    for (int i = 0; i < count; ++i) {
      std::vector<std::int32_t> positions(next.size());
      std::iota(positions.begin(), positions.end(), start);
      const auto num_rows = static_cast<std::int32_t>(next.size());
      const ops::SequenceRows rows{0, num_rows, start, pages.data()};
      const std::vector<std::int32_t> logit_rows{num_rows - 1};
      const LogitQuery query{.params = &params, .position = static_cast<std::uint64_t>(i)};
      const StepBatch batch{next, positions, {&rows, 1}, logit_rows, 4};
      device_.begin_step(batch, {&query, 1});
      device_.sample(model_.forward(batch, cache_));
      generated.push_back(device_.take_outputs().tokens.front().token);
      start += num_rows;
      next = {generated.back()};
    }
    return generated;
  }

 private:
  Device& device_;
  Model& model_;
  KvCache cache_;
};

}  // namespace minisgl::testing
