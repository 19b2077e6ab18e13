// The fake model's 50 tokens as grammars see them: 0 to 25 are letters, but for 3, which ends; then digits; then pairs
// of letters.
#pragma once

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <span>
#include <string>

#include "engine/grammar.h"

namespace minisgl::testing_support {

// Empty where it can't be loaded: its symbols of Python are those of the process, or of a library of Python.
inline std::string library_path() {
  static void* const python = dlopen(MINISGL_LIBPYTHON, RTLD_NOW | RTLD_GLOBAL);
  return python ? MINISGL_LLGUIDANCE : "";
}

// Leaves a test, as skipped, where grammars have no library.
#define MINISGL_NEEDS_LLGUIDANCE() \
  if (::minisgl::testing_support::library_path().empty()) GTEST_SKIP() << "the Python of the build has no llguidance"

inline std::string letters_of(std::int32_t token) {
  if (token == 3) return "\xff<end>";
  if (token < 26) return std::string(1, static_cast<char>('a' + token));
  if (token < 36) return std::string(1, static_cast<char>('0' + token - 26));
  return {static_cast<char>('a' + token - 36), 'z'};
}

inline std::string text_of(std::span<const std::int32_t> tokens) {
  std::string text;
  for (const std::int32_t token : tokens) {
    if (token != 3) text += letters_of(token);
  }
  return text;
}

// Where `merges` is true, a text's tokens are the pairs where there are any: others are forced.
inline GrammarVocabulary letters(std::int32_t count = 50, bool merges = false) {
  GrammarVocabulary vocabulary{.lengths = {}, .bytes = {}, .ends = {3}};
  for (std::int32_t token = 0; merges && token < 36; ++token) {
    if (token != 3) vocabulary.merges.push_back({TokenMerge::kNone, TokenMerge::kNone, token});
  }
  for (std::int32_t pair = 36; merges && pair < count; ++pair) vocabulary.merges.push_back({pair - 36, 25, pair});
  for (std::int32_t token = 0; token < count; ++token) {
    vocabulary.bytes += letters_of(token);
    vocabulary.lengths.push_back(static_cast<std::uint32_t>(letters_of(token).size()));
  }
  return vocabulary;
}

}  // namespace minisgl::testing_support
