// Ends of texts are found where they stood before.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "engine/ngram_text.h"

namespace minisgl {
namespace {

// The longest end that stands somewhere before, by trying everything.
std::int32_t longest(const std::vector<std::int32_t>& text, const std::vector<std::int32_t>& end, bool is_same) {
  std::int32_t best = 0;
  for (std::size_t next = 0; next < text.size(); ++next) {
    if (is_same && next == end.size()) continue;
    std::int32_t length = 0;
    while (length < NgramText::kLongest && std::size_t(length) < next && std::size_t(length) < end.size() &&
           text[next - 1 - length] == end[end.size() - 1 - length] && text[next - 1 - length] != NgramText::kGap) {
      ++length;
    }
    if (text[next] != NgramText::kGap) best = std::max(best, length);
  }
  return best >= NgramText::kShortest ? best : 0;
}

TEST(NgramText, FindsTheLongestEnd) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 50; ++trial) {
    NgramText text(1 << 20);
    std::vector<std::int32_t> tokens;
    for (int i = 0; i < 150; ++i) {
      // Few places for each three tokens: all of them are compared.
      const auto token = static_cast<std::int32_t>(random() % 8);
      tokens.push_back(token);
      text.append({&token, 1});
      const NgramText::Match match = text.find(text);
      ASSERT_EQ(match.length, longest(tokens, tokens, true));
      if (match.length == 0) continue;
      for (std::int64_t k = 1; k <= match.length; ++k) ASSERT_EQ(text.at(match.next - k), text.at(text.len() - k));
    }
  }
}

TEST(NgramText, FindsAnothersEndBetweenGaps) {
  NgramText kept(1 << 10), text(1 << 10);
  kept.append(std::vector<std::int32_t>{1, 2, 3, 4, NgramText::kGap, 5, 1, 2, NgramText::kGap, 3, 9});
  text.append(std::vector<std::int32_t>{7, 1, 2, 3});
  const NgramText::Match match = kept.find(text);
  EXPECT_EQ(match.length, 3);
  EXPECT_EQ(match.next, 3);
  text.append(std::vector<std::int32_t>{4});
  EXPECT_EQ(kept.find(text).length, 0) << "only a gap stands behind it";
}

TEST(NgramText, KeepsItsLatestTokens) {
  NgramText text(64);
  std::mt19937 random(3);
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < 2000; ++i) {
    const auto token = static_cast<std::int32_t>(random() % 3);
    tokens.push_back(token);
    text.append({&token, 1});
    EXPECT_EQ(text.has(i - 64), false);
    const NgramText::Match match = text.find(text);
    for (std::int64_t k = 1; k <= match.length; ++k) {
      ASSERT_TRUE(text.has(match.next - k));
      ASSERT_EQ(text.at(match.next - k), tokens[tokens.size() - static_cast<std::size_t>(k)]);
    }
  }
  EXPECT_EQ(text.len(), 2000);
}

}  // namespace
}  // namespace minisgl
