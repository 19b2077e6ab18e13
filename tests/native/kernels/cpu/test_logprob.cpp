// token_logprob() against a softmax in double, and on rows that are not numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "core/error.h"
#include "kernels/cpu/logprob.h"

namespace minisgl {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class Logprob : public testing::TestWithParam<std::tuple<int, float>> {};

TEST_P(Logprob, AgreesWithASoftmaxInDouble) {
  const auto [vocab, offset] = GetParam();
  std::mt19937 generator(vocab);
  std::normal_distribution<float> normal(offset, 3.0f);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = normal(generator);

  const double max = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const float logit : logits) total += std::exp(logit - max);
  std::vector<std::int32_t> order(vocab);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });

  std::vector<TokenLogprob> top;
  for (const int num_top : {0, 1, 5, 20}) {
    const std::int32_t token = vocab / 2;
    EXPECT_NEAR(token_logprob(logits, token, num_top, top), logits[token] - max - std::log(total), 2e-5);
    ASSERT_EQ(std::ssize(top), std::min(num_top, vocab));
    for (std::size_t i = 0; i < top.size(); ++i) {
      EXPECT_EQ(top[i].token, order[i]);
      EXPECT_NEAR(top[i].logprob, logits[order[i]] - max - std::log(total), 2e-5);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Logprob,
                         testing::Combine(testing::Values(1, 3, 64, 100, 4096, 4097, 49152),
                                          testing::Values(0.0f, 500.0f, -1000.0f)));

TEST(LogprobEdges, TiesGoToTheLowerId) {
  std::vector<TokenLogprob> top;
  EXPECT_NEAR(token_logprob(std::vector<float>(200, 2.0f), 150, 3, top), -std::log(200.0), 1e-5);
  ASSERT_EQ(top.size(), 3u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(top[i].token, i);
}

TEST(LogprobEdges, NotANumberHasNoProbability) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<TokenLogprob> top;
  EXPECT_NEAR(token_logprob(std::vector<float>{nan, 1.0f, 1.0f, -kInfinity}, 1, 4, top), -std::log(2.0), 1e-6);
  ASSERT_EQ(top.size(), 4u);
  EXPECT_EQ(top[0].token, 1);
  EXPECT_EQ(top[1].token, 2);
  EXPECT_EQ(top[2].logprob, -kInfinity);
  EXPECT_EQ(top[3].logprob, -kInfinity);
  EXPECT_EQ(token_logprob(std::vector<float>{nan, nan}, 0, 1, top), -kInfinity);
  EXPECT_NEAR(token_logprob(std::vector<float>{kInfinity, 0.0f, kInfinity}, 2, 1, top), -std::log(2.0), 1e-6);
  EXPECT_EQ(token_logprob(std::vector<float>{kInfinity, 0.0f}, 1, 1, top), -kInfinity);
}

TEST(LogprobEdges, RefusesTokensOutsideTheVocabulary) {
  std::vector<TokenLogprob> top;
  EXPECT_THROW(token_logprob(std::vector<float>(10), 10, 1, top), CheckError);
  EXPECT_THROW(token_logprob(std::vector<float>(10), -1, 1, top), CheckError);
}

}  // namespace
}  // namespace minisgl
