// The library as it is found, what it says of a text, and the threads that ask it.
#include <algorithm>
#include <chrono>
#include <random>
#include <thread>

#include "core/error.h"
#include "engine/grammars.h"
#include "engine/letters.h"
#include "kernels/processors.h"

namespace minisgl::testing_support {
namespace {

class Grammar : public testing::Test {
 protected:
  void SetUp() override {
    MINISGL_NEEDS_LLGUIDANCE();
    tokenizer = std::make_shared<const GrammarTokenizer>(LlguidanceLibrary::load(library_path()), letters(), 60);
  }
  GrammarMatcher matcher(const std::string& grammar) { return {tokenizer, grammar}; }

  static std::vector<std::int32_t> allowed(GrammarMatcher& matcher) {
    std::vector<std::uint32_t> mask;
    matcher.compute_mask(mask);
    EXPECT_EQ(std::ssize(mask), mask_words(60));
    std::vector<std::int32_t> tokens;
    for (std::int32_t token = 0; token < 60; ++token) {
      if (mask_allows(mask, token)) tokens.push_back(token);
    }
    return tokens;
  }
  template <typename Call>
  static std::string error_of(const Call& call) {
    try {
      call();
    } catch (const GrammarError& error) {
      return error.what();
    }
    return "";
  }

  std::shared_ptr<const GrammarTokenizer> tokenizer;
};

using Tokens = std::vector<std::int32_t>;

TEST_F(Grammar, SaysWhatMayCome) {
  GrammarMatcher abc = matcher("start: /a[bz]c?/");
  EXPECT_EQ(allowed(abc), (Tokens{0, 36}));  // a, and az
  abc.consume(Tokens{36});
  EXPECT_FALSE(abc.is_complete());
  EXPECT_EQ(allowed(abc), (Tokens{2, 3}));  // c, or the end
  abc.consume(Tokens{2});
  EXPECT_TRUE(abc.is_complete());
}

TEST_F(Grammar, AnEndBelongsToWhatItAccepts) {
  GrammarMatcher digits = matcher("start: /[0-9]+/");
  EXPECT_EQ(allowed(digits).size(), 10u);
  digits.consume(Tokens{27, 28});
  EXPECT_EQ(allowed(digits).size(), 11u);
  digits.consume(Tokens{3});
  EXPECT_TRUE(digits.is_complete());
}

TEST_F(Grammar, ACopyGoesItsOwnWay) {
  GrammarMatcher first = matcher("start: /ab|cd/");
  first.consume(Tokens{0});
  const auto second = first.clone();
  first.consume(Tokens{1});
  EXPECT_TRUE(first.is_complete());
  EXPECT_FALSE(second->is_complete());
  EXPECT_EQ(allowed(*second), (Tokens{1}));
}

TEST_F(Grammar, SpecialTokensAreNoText) {
  GrammarMatcher text = matcher("start: /<end>/");  // it has no < either
  EXPECT_NE(error_of([&] { allowed(text); }), "");
  GrammarMatcher token = matcher("start: \"a\" <end> \"b\"");
  token.consume(Tokens{0});
  EXPECT_EQ(allowed(token), (Tokens{3}));
}

TEST_F(Grammar, FaultsAreSentences) {
  EXPECT_THAT(error_of([&] { matcher("start: /[/"); }), testing::HasSubstr("the grammar can't be read: "));
  EXPECT_THAT(error_of([&] { matcher("{\"grammars\": 3}"); }), testing::HasSubstr("the grammar can't be read: "));
  GrammarMatcher abc = matcher("start: /abc/");
  EXPECT_THAT(error_of([&] { abc.consume(Tokens{7}); }), testing::HasSubstr("the grammar can't go on: "));
  EXPECT_NE(error_of([&] { allowed(abc); }), "");  // it stays so
  EXPECT_THAT(error_of([&] { abc.consume(Tokens{7}); }), testing::Not(testing::HasSubstr("<")));
  EXPECT_LT(error_of([&] { matcher("start: " + std::string(100000, 'x')); }).size(), 1100u);
}

TEST_F(Grammar, IsCancelled) {
  // Each character has thousands of readings more than the one before it.
  GrammarMatcher ambiguous = matcher("start: e\ne: e e | \"a\" | e e e | \"\"");
  std::jthread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    ambiguous.cancel();
  });
  EXPECT_THAT(error_of([&] {
                for (;;) ambiguous.consume(Tokens{0});
              }),
              testing::HasSubstr("the grammar can't go on: "));
}

TEST(GrammarLibrary, WhatIsMissingIsNamed) {
  const auto error_of = [](const std::string& path) -> std::string {
    try {
      LlguidanceLibrary::load(path);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(error_of("/nowhere/_lib.so"), testing::HasSubstr("llguidance could not be loaded: /nowhere/_lib.so"));
  EXPECT_THAT(error_of("libm.so.6"), testing::HasSubstr("libm.so.6 has no function llg_get_version: pip install "));
}

TEST(GrammarLibrary, AVocabularyIsChecked) {
  MINISGL_NEEDS_LLGUIDANCE();
  const LlguidanceLibrary library = LlguidanceLibrary::load(library_path());
  GrammarVocabulary vocabulary = letters();
  vocabulary.ends.clear();
  EXPECT_THROW(GrammarTokenizer(library, vocabulary, 50), InputError);
  vocabulary.ends = {50};
  EXPECT_THROW(GrammarTokenizer(library, vocabulary, 50), InputError);
  vocabulary.ends = {3, 7};
  GrammarTokenizer(library, vocabulary, 50);
  vocabulary.bytes.pop_back();
  EXPECT_THROW(GrammarTokenizer(library, vocabulary, 50), InputError);
}

TEST(TokenMerges, ThoseThatComeFirstAreMadeFirst) {
  const std::vector<std::uint32_t> lengths = {1, 1, 1, 2, 2, 3};
  const std::vector<TokenMerge> merges = {{-1, -1, 0}, {-1, -1, 1}, {-1, -1, 2}, {-1, -1, 99},
                                          {1, 2, 4},   {0, 1, 3},   {3, 2, 5},   {0, 99, 3}};
  const TokenMerges tokens(lengths, "abcabbcabc", merges);
  const auto tokens_of = [&](std::string_view text) {
    return tokens.tokenize({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
  };
  EXPECT_THAT(tokens_of("abc"), testing::ElementsAre(0, 4));
  EXPECT_THAT(tokens_of("abab"), testing::ElementsAre(3, 3));
  EXPECT_THAT(tokens_of("ab-c"), testing::ElementsAre(3));  // up to what has no token
  EXPECT_EQ(tokens_of(std::string(3000, 'b')).size(), 3000u);
  EXPECT_THAT(tokens_of(""), testing::IsEmpty());
}

// As SentencePiece's: some letters have a token beside that of their byte, some characters one beside those of theirs.
TEST(TokenMerges, CharactersAreTokensOrTheirBytes) {
  std::vector<std::uint32_t> lengths(256, 1);
  std::string bytes;
  std::vector<TokenMerge> merges;
  for (int byte = 0; byte < 256; ++byte) bytes += static_cast<char>(byte);
  for (const std::string_view token : {"a", "\u00e9", "a\u00e9", "\U0001f600"}) {
    if (token.size() != 3) merges.push_back({-1, -1, static_cast<std::int32_t>(lengths.size())});
    lengths.push_back(static_cast<std::uint32_t>(token.size()));
    bytes += token;
  }
  for (int byte = 0; byte < 256; ++byte) merges.push_back({-1, -1, byte});
  merges.push_back({256, 257, 258});
  const TokenMerges made(lengths, bytes, merges);
  const auto tokens_of = [&](std::string_view text) {
    return made.tokenize({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
  };
  EXPECT_THAT(tokens_of("aba"), testing::ElementsAre(256, 'b', 256));
  EXPECT_THAT(tokens_of("a\u00e9\u00e9\u00e8\U0001f600"), testing::ElementsAre(258, 257, 0xc3, 0xa8, 259));
  EXPECT_THAT(tokens_of("\xc3"), testing::ElementsAre(0xc3));
  EXPECT_THAT(tokens_of("\x98\x80z"), testing::ElementsAre(0x98, 0x80, 'z'));  // begins within a character
  std::string longer = "b";
  for (int i = 0; i < 600; ++i) longer += "\u00e9";  // pieces end between characters
  EXPECT_EQ(tokens_of(longer).size(), 601u);
}

TEST(TokenMerges, AreMadeAsTheyAreOneByOne) {
  std::mt19937 random(11);
  const auto below = [&](std::size_t limit) { return static_cast<std::int32_t>(random() % limit); };
  std::vector<std::string> tokens = {"a", "b", "c"};
  std::vector<TokenMerge> merges;
  while (tokens.size() < 40) {
    merges.push_back({below(tokens.size()), below(tokens.size()), static_cast<std::int32_t>(tokens.size())});
    tokens.push_back(tokens[static_cast<std::size_t>(merges.back().left)] +
                     tokens[static_cast<std::size_t>(merges.back().right)]);
  }
  std::ranges::shuffle(merges, random);
  std::vector<std::uint32_t> lengths;
  std::string bytes;
  for (const std::string& token : tokens) {
    lengths.push_back(static_cast<std::uint32_t>(token.size()));
    bytes += token;
  }
  std::vector<TokenMerge> all = {{-1, -1, 0}, {-1, -1, 1}, {-1, -1, 2}};
  all.insert(all.end(), merges.begin(), merges.end());
  const TokenMerges made(lengths, bytes, all);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::uint8_t> text(static_cast<std::size_t>(below(200)));
    std::vector<std::int32_t> expected;
    for (std::uint8_t& letter : text) {
      expected.push_back(below(3));
      letter = static_cast<std::uint8_t>('a' + expected.back());
    }
    for (bool goes_on = true; goes_on;) {  // the first merge that there is, where it is first
      goes_on = false;
      for (const TokenMerge& merge : merges) {
        const std::int32_t pair[] = {merge.left, merge.right};
        const auto found = std::search(expected.begin(), expected.end(), std::begin(pair), std::end(pair));
        if (found == expected.end()) continue;
        *found = merge.merged;
        expected.erase(found + 1);
        goes_on = true;
        break;
      }
    }
    ASSERT_EQ(made.tokenize(text), expected);
  }
}

// Reading has limits of its own: what it took is no time of the first mask.
TEST(GrammarThreads, ReadingIsNoPartOfAMask) {
  MINISGL_NEEDS_LLGUIDANCE();
  constexpr std::chrono::milliseconds kLimit{50};
  Grammars grammars(50, kLimit, [] {});
  grammars.open(library_path(), letters());
  std::string grammar = "start: /a/";
  for (int i = 0; i < 60'000; ++i) grammar += " \"ab\"";
  // On a busy machine the mask may take longer than its limit, too, but not each time.
  bool was_in_time = false;
  for (SequenceId id = 1; id <= 20 && !was_in_time; ++id) {
    const auto began = Grammars::Clock::now();
    grammars.begin(id, {.text = grammar});
    std::vector<GrammarResult> results;
    for (; results.empty(); grammars.take(results)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    grammars.end(id);
    was_in_time = results.front().error.empty() && Grammars::Clock::now() - began > kLimit;
  }
  EXPECT_TRUE(was_in_time);
}

}  // namespace
}  // namespace minisgl::testing_support
