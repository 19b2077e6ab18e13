// Each part of the chain of logit processors on the CPU, and that the parts come in their order.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "core/error.h"
#include "kernels/cpu/processors.h"
#include "kernels/cpu/seen_tokens.h"

namespace minisgl {
namespace {

using testing::ElementsAre;
constexpr float kOut = -std::numeric_limits<float>::infinity();

std::vector<float> after(std::vector<float> logits, const LogitProcessors& processors) {
  apply_processors(logits, processors);
  return logits;
}

TEST(Processors, NoPartChangesNothing) {
  EXPECT_THAT(after({1.0f, -2.0f}, {}), ElementsAre(1.0f, -2.0f));
}

TEST(Processors, BiasIsAddedEachTimeThatATokenStandsThere) {
  const std::vector<TokenBias> bias{{1, 2.0f}, {1, 0.5f}};
  EXPECT_THAT(after({1.0f, 1.0f}, {.bias = bias}), ElementsAre(1.0f, 3.5f));
}

TEST(Processors, PenaltiesAreOfWhatBiasLeft) {
  CpuSeenTokens seen(TokenCounts{.in_prompt = {1, 1}, .in_output = {0, 0}});
  const std::vector<TokenBias> bias{{0, 3.0f}, {1, -3.0f}};
  EXPECT_THAT(after({1.0f, 1.0f}, {.bias = bias, .penalties = {.repetition = 2.0f, .seen = &seen}}),
              ElementsAre(2.0f, -4.0f));
}

TEST(Processors, BansOutweighBias) {
  const std::vector<TokenBias> bias{{0, 100.0f}};
  const std::vector<std::int32_t> banned{0};
  EXPECT_THAT(after({1.0f, 1.0f}, {.bias = bias, .banned = banned}), ElementsAre(kOut, 1.0f));
}

TEST(Processors, AMaskLeavesItsTokensAlone) {
  for (const std::size_t vocab : {1u, 31u, 32u, 33u, 64u, 100u}) {
    const std::vector<float> ones(vocab, 1.0f);
    std::vector<std::uint32_t> mask(static_cast<std::size_t>(mask_words(static_cast<std::int64_t>(vocab))));
    EXPECT_EQ(after(ones, {.mask = mask}), std::vector<float>(vocab, kOut));
    for (std::size_t token = 0; token < vocab; ++token) {
      mask.assign(mask.size(), 0);
      mask[token / 32] = 1u << (token % 32);
      std::vector<float> expected(vocab, kOut);
      expected[token] = 1.0f;
      EXPECT_EQ(after(ones, {.mask = mask}), expected) << token << " of " << vocab;
      for (std::size_t other = 0; other < vocab; ++other)
        EXPECT_EQ(mask_allows(mask, static_cast<std::int32_t>(other)), other == token);
    }
    mask.assign(mask.size(), ~std::uint32_t{0});
    EXPECT_EQ(after(ones, {.mask = mask}), ones);
  }
}

TEST(Processors, WrongMasksAndTokensAreRefused) {
  std::vector<float> logits(33, 1.0f);
  for (const std::size_t words : {1u, 3u}) {
    const std::vector<std::uint32_t> mask(words, 1);
    EXPECT_THROW(apply_mask(logits, mask), CheckError) << words;
  }
  for (const std::int32_t token : {-1, 33}) {
    const std::vector<std::int32_t> banned{token};
    const std::vector<TokenBias> bias{{token, 1.0f}};
    EXPECT_THROW(apply_bans(logits, banned), CheckError);
    EXPECT_THROW(apply_bias(logits, bias), CheckError);
  }
}

TEST(Processors, WithoutANumberTheFirstAllowedTokenIsDrawn) {
  const std::vector<std::int32_t> banned{0, 1, 5};
  const std::vector<std::uint32_t> odd{0xaaaaaaaa}, five{1u << 5}, none{0};
  EXPECT_EQ(first_allowed(8, {}), 0);
  EXPECT_EQ(first_allowed(8, {.banned = banned}), 2);
  EXPECT_EQ(first_allowed(8, {.banned = banned, .mask = odd}), 3);
  EXPECT_EQ(first_allowed(8, {.banned = banned, .mask = five}), 5);  // a mask outweighs a ban
  EXPECT_EQ(first_allowed(8, {.banned = banned, .mask = none}), 0);
  EXPECT_EQ(first_allowed(2, {.banned = banned}), 0);
}

}  // namespace
}  // namespace minisgl
