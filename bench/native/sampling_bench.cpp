// Sampling one row of logits, beside one read of the row (4 bytes a token of the vocabulary).
//
//   of_bandwidth   bytes of the row a second over what one thread reads from memory here; above 1 where the row lies in
//   a
//                  cache, as it does just after the model wrote it
//
// Argument: vocabulary. "peaked" rows are like a language model's, "flat" ones are the worst case of the filters.
#include <benchmark/benchmark.h>

#include <random>
#include <vector>

#include "core/bandwidth.h"
#include "kernels/cpu/logprob.h"
#include "kernels/cpu/sampling.h"
#include "kernels/cpu/seen_tokens.h"

namespace {

using minisgl::SamplingParams;

std::vector<float> make_logits(std::int64_t vocab, float spread) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = normal(generator);
  return logits;
}

void report_bytes(benchmark::State& state) {
  static const double bandwidth = [] {
    minisgl::ThreadPool one(1);
    return minisgl::measure_read_bandwidth(one);
  }();
  const auto bytes = static_cast<double>(state.iterations() * state.range(0) * 4);
  state.SetBytesProcessed(state.iterations() * state.range(0) * 4);
  state.counters["of_bandwidth"] = benchmark::Counter(bytes / bandwidth, benchmark::Counter::kIsRate);
}

SamplingParams filters(float temperature, int top_k, float top_p, float min_p) {
  SamplingParams params;
  params.temperature = temperature;
  params.top_k = top_k;
  params.top_p = top_p;
  params.min_p = min_p;
  return params;
}

void sample(benchmark::State& state, SamplingParams params, float spread) {
  auto logits = make_logits(state.range(0), spread);
  minisgl::SampleScratch scratch;
  std::uint64_t position = 0;
  for (auto _ : state) benchmark::DoNotOptimize(minisgl::sample(logits, params, {}, position++, scratch));
  report_bytes(state);
}

void penalties(benchmark::State& state) {
  auto logits = make_logits(state.range(0), 3.0f);
  minisgl::CpuSeenTokens seen(std::ssize(logits), true);
  minisgl::SampleScratch scratch;
  std::uint64_t position = 0;
  const SamplingParams params = filters(0.7f, 0, 0.9f, 0);
  const minisgl::LogitProcessors processors{.penalties = {.repetition = 1.1f, .seen = &seen}};
  for (auto _ : state) benchmark::DoNotOptimize(minisgl::sample(logits, params, processors, position++, scratch));
  report_bytes(state);
}

void logprob(benchmark::State& state) {
  const auto logits = make_logits(state.range(0), 3.0f);
  std::vector<minisgl::TokenLogprob> top;
  for (auto _ : state) benchmark::DoNotOptimize(minisgl::token_logprob(logits, 7, 20, top));
  report_bytes(state);
}

void vocabularies(benchmark::internal::Benchmark* benchmark) {
  benchmark->Arg(49152)->Arg(151936)->Unit(benchmark::kMicrosecond);
}

BENCHMARK_CAPTURE(sample, greedy, filters(0, 0, 1, 0), 3.0f)->Apply(vocabularies);
BENCHMARK_CAPTURE(sample, temperature, filters(0.7f, 0, 1, 0), 3.0f)->Apply(vocabularies);
BENCHMARK_CAPTURE(sample, top_k_40, filters(0.7f, 40, 1, 0), 3.0f)->Apply(vocabularies);
BENCHMARK_CAPTURE(sample, top_k_1000, filters(0.7f, 1000, 1, 0), 3.0f)->Apply(vocabularies);
BENCHMARK_CAPTURE(sample, top_p_peaked, filters(0.7f, 0, 0.9f, 0), 3.0f)->Apply(vocabularies);
BENCHMARK_CAPTURE(sample, top_p_flat, filters(0.7f, 0, 0.9f, 0), 0.1f)->Apply(vocabularies);
BENCHMARK_CAPTURE(sample, min_p, filters(0.7f, 0, 1, 0.05f), 3.0f)->Apply(vocabularies);
BENCHMARK_CAPTURE(sample, all_filters, filters(0.7f, 40, 0.9f, 0.05f), 3.0f)->Apply(vocabularies);
BENCHMARK(penalties)->Apply(vocabularies);
BENCHMARK(logprob)->Apply(vocabularies);

}  // namespace
