// A model whose next token is a function of everything before it, read back from the paged cache: a token computed
// twice or never, at a wrong position or into a wrong page changes what comes out. And its reference, which knows no
// cache.
#pragma once

#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "core/error.h"
#include "engine/adapters.h"
#include "engine/engine.h"
#include "kernels/cpu/logprob.h"
#include "kernels/cpu/sampling.h"
#include "kernels/cpu/seen_tokens.h"
#include "models/model.h"

namespace minisgl::testing_support {

inline std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15ull + (hash << 6) + (hash >> 2);
  hash *= 0xff51afd7ed558ccdull;
  return hash ^ (hash >> 33);
}

// Logits [vocab] in [-2, 2) that follow from a hash of the tokens so far.
inline void hashed_logits(std::uint64_t hash, std::span<float> logits) {
  for (std::size_t token = 0; token < logits.size(); ++token) {
    logits[token] = static_cast<float>(mix(hash, token) >> 40) / (1 << 22) - 2.0f;
  }
}

inline ModelSpec fake_spec(std::int64_t vocab_size = 50) {
  ModelSpec spec;
  spec.family = "fake";
  spec.vocab_size = vocab_size;
  spec.hidden_size = 2;
  spec.intermediate_size = 2;
  spec.num_layers = spec.num_heads = spec.num_kv_heads = 1;
  spec.head_dim = 2;
  spec.max_position = 4096;
  spec.window = {0};
  spec.eos_token_ids = {3};
  return spec;
}

// A model's answers depend on its number alone.
struct FakeAdapter final : Adapter {
  explicit FakeAdapter(std::int32_t number_) : number(number_) {}
  std::int64_t nbytes() const override { return 0; }
  std::int32_t number;
};

// Has the adapters 1 and 2.
struct FakeAdapters final : Adapters {
  FakeAdapters() {
    for (const std::int32_t number : {1, 2}) add(number, std::make_shared<const FakeAdapter>(number));
  }
};

class FakeModel : public Model {
 public:
  // What a step computes, given the batch with every token known.
  using Compute = std::function<void(const StepBatch&)>;

  // `on_forward` is called at the start of each step, on the engine thread. `enqueue` hands the step's work to a device
  // that runs ahead. Hidden states go to `device`.
  explicit FakeModel(ModelSpec spec = fake_spec(), std::function<void(const StepBatch&)> on_forward = {},
                     std::function<void(Compute)> enqueue = {}, Ops* device = nullptr)
      : spec_(std::move(spec)), on_forward_(std::move(on_forward)), enqueue_(std::move(enqueue)), device_(device) {}

  const ModelSpec& spec() const override { return spec_; }
  std::int64_t weight_bytes() const override { return 0; }
  DType weight_dtype() const override { return DType::f32; }
  std::int64_t workspace_bytes(const StepLimits& limits) const override { return limits.logits * spec_.vocab_size * 8; }

  Tensor forward(const StepBatch& batch, KvCache& cache) override {
    if (on_forward_) on_forward_(batch);
    turn_ ^= 1;
    std::vector<float>& logits = logits_[turn_];
    logits.resize(batch.logit_rows.size() * spec_.vocab_size);
    std::vector<float>& hidden = hidden_[turn_];
    hidden.resize(batch.hidden_rows.size() * 2);
    if (enqueue_) {
      enqueue_([this, &cache, &logits, &hidden](const StepBatch& known) { compute(known, cache, logits, hidden); });
    } else {
      compute(batch, cache, logits, hidden);
    }
    if (!hidden.empty()) {
      device_->keep_hidden({reinterpret_cast<std::byte*>(hidden.data()), DType::f32, std::ssize(hidden) / 2, 2});
    }
    return {reinterpret_cast<std::byte*>(logits.data()), DType::f32, std::ssize(batch.logit_rows), spec_.vocab_size};
  }

 private:
  void compute(const StepBatch& batch, KvCache& cache, std::span<float> logits, std::span<float> hidden) const {
    for (const ops::SequenceRows& rows : batch.sequences) {
      for (std::int32_t i = 0; i < rows.num_rows; ++i) {
        const std::int32_t row = rows.first_row + i;
        MINISGL_CHECK(batch.positions[row] == rows.start_position + i);
        float* key = slot(cache, rows, batch.positions[row]);
        key[0] = static_cast<float>(batch.tokens[row]);
        key[1] = static_cast<float>(batch.positions[row]);
      }
    }
    std::size_t next = 0;
    for (const ops::SequenceRows& rows : batch.sequences) {
      for (; next < batch.logit_rows.size() && batch.logit_rows[next] < rows.first_row + rows.num_rows; ++next) {
        hashed_logits(hash_at(cache, rows, batch.positions[batch.logit_rows[next]]),
                      logits.subspan(next * spec_.vocab_size, spec_.vocab_size));
      }
    }
    next = 0;
    for (const ops::SequenceRows& rows : batch.sequences) {
      for (; next < batch.hidden_rows.size() && batch.hidden_rows[next] < rows.first_row + rows.num_rows; ++next) {
        hashed_logits(hash_at(cache, rows, batch.positions[batch.hidden_rows[next]]), hidden.subspan(next * 2, 2));
      }
    }
  }

  // A hash of everything that a row at this position attends to.
  static std::uint64_t hash_at(KvCache& cache, const ops::SequenceRows& rows, std::int32_t position) {
    auto hash =
        static_cast<std::uint64_t>(rows.adapter == nullptr ? 0 : static_cast<const FakeAdapter*>(rows.adapter)->number);
    for (std::int32_t p = 0; p <= position; ++p) {
      const float* key = slot(cache, rows, p);
      hash = mix(mix(hash, static_cast<std::uint64_t>(key[0])), static_cast<std::uint64_t>(key[1]));
    }
    return hash;
  }

  static float* slot(KvCache& cache, const ops::SequenceRows& rows, std::int32_t position) {
    const ops::KvLayer layer = cache.layer(0);
    const std::int64_t page = rows.page_table[position / layer.page_size];
    MINISGL_CHECK(page >= 0 && page < cache.num_pages());
    return reinterpret_cast<float*>(layer.keys) + (page * layer.page_size + position % layer.page_size) * 2;
  }

  ModelSpec spec_;
  std::function<void(const StepBatch&)> on_forward_;
  std::function<void(Compute)> enqueue_;
  Ops* device_;
  std::vector<float> logits_[2], hidden_[2];  // of the step at hand and the one before
  int turn_ = 0;
};

inline std::vector<float> reference_logits(std::span<const std::int32_t> tokens, std::int64_t vocab_size,
                                           std::int32_t adapter = 0) {
  auto hash = static_cast<std::uint64_t>(adapter);
  for (std::size_t p = 0; p < tokens.size(); ++p) hash = mix(mix(hash, tokens[p]), p);
  std::vector<float> logits(vocab_size);
  hashed_logits(hash, logits);
  return logits;
}

struct ReferenceOutput {
  std::vector<std::int32_t> tokens;
  FinishReason finish = FinishReason::length;
  std::vector<float> embedding = {};
};

// What the hidden states of a prompt's rows come to.
inline std::vector<float> reference_embedding(const Request& request) {
  const std::span<const std::int32_t> prompt = request.prompt;
  std::vector<double> pooled(2);
  for (std::size_t length = prompt.size() - request.pooling.num_rows(std::ssize(prompt)); length < prompt.size();) {
    const std::vector<float> row = reference_logits(prompt.first(++length), 2);
    for (std::size_t i = 0; i < 2; ++i) pooled[i] += row[i];
  }
  if (request.pooling.dimensions > 0) pooled.resize(static_cast<std::size_t>(request.pooling.dimensions));
  double scale = 1.0 / static_cast<double>(request.pooling.num_rows(std::ssize(prompt)));
  if (request.pooling.normalize) {
    double squares = 0;
    for (const double value : pooled) squares += value * value;
    scale = 1.0 / std::sqrt(squares);
  }
  std::vector<float> embedding;
  for (const double value : pooled) embedding.push_back(static_cast<float>(value * scale));
  return embedding;
}

// Tokens that come after these without a draw.
using Force = std::function<std::vector<std::int32_t>(std::span<const std::int32_t> tokens)>;

// What a request must get, whatever happens around it. `first`: tokens that its answer begins with, without a draw.
inline ReferenceOutput reference_generate(const Request& request, const ModelSpec& spec, const Force& force = {},
                                          const std::vector<std::int32_t>& first = {}) {
  ReferenceOutput output;
  if (request.pooling.enabled())
    return {.tokens = {}, .finish = FinishReason::stop, .embedding = reference_embedding(request)};
  std::vector<std::int32_t> tokens = request.prompt, stops = request.stop_token_ids;
  if (!request.ignore_eos) stops.insert(stops.end(), spec.eos_token_ids.begin(), spec.eos_token_ids.end());
  CpuSeenTokens seen(spec.vocab_size, true);
  seen.add_prompt(request.prompt);
  const SamplingParams& params = request.sampling;
  LogitProcessors processors{
      .bias = params.logit_bias,
      .penalties = {params.repetition_penalty, params.presence_penalty, params.frequency_penalty, &seen}};
  std::vector<std::uint32_t> allowed(mask_words(spec.vocab_size));
  for (const std::int32_t token : params.allowed_token_ids) allowed[token / 32] |= 1u << (token % 32);
  if (!params.allowed_token_ids.empty()) processors.mask = allowed;
  SampleScratch scratch;
  std::vector<std::int32_t> forced(first.rbegin(), first.rend());  // those that come next, in reverse
  for (std::int64_t i = 0; i < request.max_tokens; ++i) {
    std::int32_t token = 0;
    if (!forced.empty()) {
      token = forced.back();
      forced.pop_back();
    } else {
      std::vector<float> logits = reference_logits(tokens, spec.vocab_size);
      std::vector<std::int32_t> banned;
      if (i < request.min_tokens) banned = stops;
      for (std::vector<std::int32_t> word : params.bad_words) {
        const std::int32_t last = word.back();
        word.pop_back();
        const auto size = static_cast<std::ptrdiff_t>(word.size());
        if (size <= i && std::equal(word.begin(), word.end(), output.tokens.end() - size)) banned.push_back(last);
      }
      processors.banned = banned;
      token = sample(logits, params, processors, i, scratch);
      if (force) {
        tokens.push_back(token);
        forced = force(tokens);
        std::ranges::reverse(forced);
        tokens.pop_back();
      }
    }
    seen.add_output({&token, 1});
    tokens.push_back(token);
    output.tokens.push_back(token);
    if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
      output.finish = FinishReason::stop;
      break;
    }
  }
  return output;
}

}  // namespace minisgl::testing_support
