// sample() against the reference distribution, token by token and in its frequencies, and at its edges.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <ostream>
#include <string>

#include "core/error.h"
#include "kernels/cpu/sampling.h"
#include "kernels/philox.h"
#include "kernels/random_floats.h"
#include "kernels/sampling_reference.h"

namespace minisgl {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::int32_t sample_copy(std::vector<float> logits, const SamplingParams& params, std::uint64_t position = 0,
                         LogitProcessors processors = {}) {
  SampleScratch scratch;
  processors.bias = params.logit_bias;
  return sample(logits, params, processors, position, scratch);
}

Penalties penalties_of(const SamplingParams& params, SeenTokens& seen) {
  return {params.repetition_penalty, params.presence_penalty, params.frequency_penalty, &seen};
}

// Draws for many positions and holds each against the reference's walk through the distribution in id order.
void expect_reference_tokens(const std::vector<float>& logits, const SamplingParams& params,
                             const TokenCounts& counts = {}, std::span<const std::int32_t> banned = {}) {
  const auto adjusted = reference::adjusted_logits(logits, params, counts, banned);
  CpuSeenTokens seen(counts);
  LogitProcessors processors{.bias = params.logit_bias, .banned = banned};
  if (!counts.in_output.empty()) processors.penalties = penalties_of(params, seen);
  const auto probability = reference::distribution(adjusted, params);
  SampleScratch scratch;
  int on_the_border = 0;
  const int kDraws = logits.size() > 10000 ? 40 : 200;
  for (int position = 0; position < kDraws; ++position) {
    std::vector<float> row = logits;
    const std::int32_t token = sample(row, params, processors, position, scratch);
    ASSERT_GE(token, 0);
    ASSERT_LT(token, std::ssize(logits));
    ASSERT_GT(probability[token], 0.0) << "token " << token << " was filtered out";
    const double below = std::accumulate(probability.begin(), probability.begin() + token, 0.0);
    const double uniform = philox_uniform(params.seed, position);
    ASSERT_GT(uniform, below - 1e-5);
    ASSERT_LT(uniform, below + probability[token] + 1e-5);
    on_the_border += uniform < below || uniform >= below + probability[token];
  }
  EXPECT_LT(on_the_border, kDraws / 20);
}

struct Case {
  const char* name;
  SamplingParams params;

  friend void PrintTo(const Case& shown, std::ostream* out) { *out << shown.name; }
};

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](const char* name, auto&& change) {
    Case next{name, {}};
    next.params.seed = 1234 + all.size();
    change(next.params);
    all.push_back(next);
  };
  add("plain", [](auto&) {});
  add("cold", [](auto& p) { p.temperature = 0.3f; });
  add("hot", [](auto& p) { p.temperature = 5.0f; });
  add("top_k_1", [](auto& p) { p.top_k = 1; });
  add("top_k_5", [](auto& p) { p.top_k = 5; });
  add("top_k_40_cold", [](auto& p) { p.top_k = 40, p.temperature = 0.7f; });
  add("top_k_1000", [](auto& p) { p.top_k = 1000, p.temperature = 2.0f; });
  add("top_k_huge", [](auto& p) { p.top_k = 2000000000; });
  add("top_p_10", [](auto& p) { p.top_p = 0.1f; });
  add("top_p_90", [](auto& p) { p.top_p = 0.9f; });
  add("top_p_999_hot", [](auto& p) { p.top_p = 0.999f, p.temperature = 3.0f; });
  add("min_p", [](auto& p) { p.min_p = 0.05f; });
  add("min_p_1", [](auto& p) { p.min_p = 1.0f; });
  add("top_k_top_p", [](auto& p) { p.top_k = 20, p.top_p = 0.8f; });
  add("everything", [](auto& p) { p.top_k = 50, p.top_p = 0.95f, p.min_p = 0.02f, p.temperature = 1.5f; });
  return all;
}

class SampleCase : public testing::TestWithParam<std::tuple<Case, int>> {};

TEST_P(SampleCase, DrawsWhatTheReferenceDraws) {
  const auto& [test_case, vocab] = GetParam();
  expect_reference_tokens(random_floats(vocab, 7, 2.0f), test_case.params);
}

INSTANTIATE_TEST_SUITE_P(All, SampleCase,
                         testing::Combine(testing::ValuesIn(cases()), testing::Values(1, 2, 7, 64, 65, 1000, 20011)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param).name) + "_of_" +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST(Sample, FrequenciesFollowTheDistribution) {
  SamplingParams params;
  params.temperature = 0.8f;
  params.top_p = 0.95f;
  params.seed = 99;
  const auto logits = random_floats(30, 3, 1.0f);
  const auto probability = reference::distribution(std::vector<double>(logits.begin(), logits.end()), params);
  constexpr int kDraws = 50000;
  std::vector<int> counts(logits.size());
  for (int position = 0; position < kDraws; ++position) ++counts[sample_copy(logits, params, position)];
  double chi_square = 0;
  int survivors = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (probability[i] == 0) {
      EXPECT_EQ(counts[i], 0);
      continue;
    }
    ++survivors;
    const double expected = probability[i] * kDraws;
    chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  ASSERT_GT(survivors, 10);
  EXPECT_LT(chi_square, survivors - 1 + 4 * std::sqrt(2.0 * survivors));
}

TEST(Sample, IsAFunctionOfSeedAndPosition) {
  const auto logits = random_floats(1000, 5, 1.0f);
  SamplingParams params, other;
  params.seed = 7;
  other.seed = std::uint64_t{7} << 32;
  std::vector<std::int32_t> first, again, different;
  for (std::uint64_t position = 0; position < 50; ++position) {
    first.push_back(sample_copy(logits, params, position));
    different.push_back(sample_copy(logits, other, position));
  }
  for (std::uint64_t position = 50; position-- > 0;) again.push_back(sample_copy(logits, params, position));
  std::reverse(again.begin(), again.end());
  EXPECT_EQ(first, again);
  EXPECT_NE(first, different);
}

TEST(Sample, GreedyTakesTheLowestOfTheMostLikely) {
  SamplingParams params;
  params.temperature = 0;
  std::vector<float> logits(500, -1.0f);
  logits[130] = logits[131] = logits[400] = 3.0f;
  EXPECT_EQ(sample_copy(logits, params), 130);
  logits[5] = kNaN;
  EXPECT_EQ(sample_copy(logits, params), 130);
  logits[450] = kInfinity;
  EXPECT_EQ(sample_copy(logits, params), 450);
}

TEST(Sample, TiesGoToTheLowerId) {
  SamplingParams top_k, top_p;
  top_k.top_k = 3;
  top_p.top_p = 0.3f;
  const std::vector<float> logits(10, 1.5f);
  for (int position = 0; position < 200; ++position) {
    EXPECT_LT(sample_copy(logits, top_k, position), 3);
    EXPECT_LT(sample_copy(logits, top_p, position), 3);
  }
}

TEST(Sample, TopPKeepsTheTokenThatReachesIt) {
  SamplingParams params;
  params.top_p = 0.5f;
  const std::vector<float> logits = {std::log(0.4f), std::log(0.3f), std::log(0.2f), std::log(0.1f)};
  std::vector<int> counts(4);
  for (int position = 0; position < 1000; ++position) ++counts[sample_copy(logits, params, position)];
  EXPECT_THAT(counts, testing::ElementsAre(testing::Gt(500), testing::Gt(300), 0, 0));
}

TEST(Sample, BiasPenaltiesAndBansComeBeforeTheFilters) {
  const std::size_t vocab = 300;
  auto logits = random_floats(vocab, 11, 2.0f);
  TokenCounts counts;
  counts.in_prompt.assign(vocab, 0);
  counts.in_output.assign(vocab, 0);
  for (std::size_t i = 0; i < vocab; i += 3) counts.in_prompt[i] = 1;
  for (std::size_t i = 0; i < vocab; i += 5) counts.in_output[i] = i % 4;
  SamplingParams params;
  params.logit_bias = {{17, 6.0f}, {18, -100.0f}, {17, 0.5f}};
  params.repetition_penalty = 1.3f;
  params.presence_penalty = 0.5f;
  params.frequency_penalty = 0.4f;
  params.top_k = 60;
  params.top_p = 0.97f;
  const std::vector<std::int32_t> banned = {
      static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin())};
  expect_reference_tokens(logits, params, counts, banned);
}

TEST(Sample, EachPenaltyMovesTheLogitsAsDefined) {
  SamplingParams params;
  params.temperature = 0;
  CpuSeenTokens seen(TokenCounts{.in_prompt = {1, 0, 0}, .in_output = {0, 2, 0}});
  const auto after = [&](std::vector<float> logits) {
    SampleScratch scratch;
    sample(logits, params, {.penalties = penalties_of(params, seen)}, 0, scratch);
    return logits;
  };
  params.repetition_penalty = 2.0f;
  EXPECT_THAT(after({4.0f, -4.0f, 1.0f}), testing::ElementsAre(2.0f, -8.0f, 1.0f));
  params.repetition_penalty = 1.0f;
  params.presence_penalty = 0.5f;
  EXPECT_THAT(after({4.0f, -4.0f, 1.0f}), testing::ElementsAre(4.0f, -4.5f, 1.0f));
  params.presence_penalty = 0.0f;
  params.frequency_penalty = 0.5f;
  EXPECT_THAT(after({4.0f, -4.0f, 1.0f}), testing::ElementsAre(4.0f, -5.0f, 1.0f));
}

TEST(Sample, RowsWithoutANumberGiveTheLowestAllowedToken) {
  SamplingParams greedy, random;
  greedy.temperature = 0;
  random.top_k = 5;
  random.top_p = 0.5f;
  random.min_p = 0.1f;
  const std::vector<std::int32_t> banned = {0, 1};
  for (const auto& params : {greedy, random}) {
    for (const float value : {kNaN, -kInfinity}) {
      EXPECT_EQ(sample_copy(std::vector<float>(70, value), params), 0);
      EXPECT_EQ(sample_copy(std::vector<float>(70, value), params, 0, {.banned = banned}), 2);
    }
    EXPECT_EQ(sample_copy(std::vector<float>(2, 1.0f), params, 0, {.banned = banned}), 0);
  }
}

TEST(Sample, ExtremeLogitsAndTemperaturesStayValid) {
  std::vector<float> logits(100, kNaN);
  logits[3] = std::numeric_limits<float>::max();
  logits[4] = std::numeric_limits<float>::lowest();
  logits[5] = -kInfinity;
  SamplingParams params;
  for (const float temperature : {1e-45f, 1e-30f, 1.0f, 100.0f}) {
    params.temperature = temperature;
    EXPECT_EQ(sample_copy(logits, params), 3);
  }
  logits[70] = logits[80] = kInfinity;
  std::vector<int> counts(100);
  for (int position = 0; position < 400; ++position) ++counts[sample_copy(logits, params, position)];
  EXPECT_GT(counts[70], 120);
  EXPECT_GT(counts[80], 120);
  EXPECT_EQ(counts[70] + counts[80], 400);
}

TEST(Sample, RefusesTokensOutsideTheVocabulary) {
  SamplingParams params;
  params.logit_bias = {{10, 1.0f}};
  EXPECT_THROW(sample_copy(std::vector<float>(10), params), CheckError);
  const std::vector<std::int32_t> banned = {-1};
  EXPECT_THROW(sample_copy(std::vector<float>(10), {}, 0, {.banned = banned}), CheckError);
}

}  // namespace
}  // namespace minisgl
