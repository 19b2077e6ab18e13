// A grammar in the text of one sequence: which tokens may come next. Matching is llguidance's (llguidance.h).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/llguidance.h"
#include "engine/token_merges.h"

namespace minisgl {

// What a grammar must know of a model's tokens.
struct GrammarVocabulary {
  // Of each token, as many as there are; those of special tokens begin with 0xff, which is in no text.
  std::vector<std::uint32_t> lengths;
  std::string bytes;               // of all tokens, one after the other
  std::vector<std::int32_t> ends;  // tokens that end an answer: at least one
  // How a text's tokens are made, in the order of TokenMerges; empty where they aren't made so. Then any tokens of a
  // text are as good, and none are forced.
  std::vector<TokenMerge> merges = {};
};

// A grammar that can't be read, or that can't go on. The sentence is for whoever sent it.
class GrammarError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The library with a model's vocabulary. Thread-safe.
class GrammarTokenizer {
 public:
  // `vocab_size` is the model's; tokens that `vocabulary` lacks are never allowed. InputError.
  GrammarTokenizer(const LlguidanceLibrary& library, const GrammarVocabulary& vocabulary, std::int64_t vocab_size);
  ~GrammarTokenizer();
  GrammarTokenizer(const GrammarTokenizer&) = delete;

  const LlguidanceLibrary& library() const { return library_; }
  const llg::Tokenizer* handle() const { return handle_; }
  std::int64_t vocab_size() const { return vocab_size_; }
  std::span<const std::int32_t> ends() const { return ends_; }
  bool can_force() const { return merges_.has_value(); }

 private:
  const LlguidanceLibrary library_;
  const std::int64_t vocab_size_;
  const std::vector<std::int32_t> ends_;
  std::optional<TokenMerges> merges_;
  llg::Tokenizer* handle_;
};

// How far the text of a sequence has come in its grammar. One thread at a time, but for cancel().
class GrammarMatcher {
 public:
  // `grammar` is llguidance's text: Lark, or JSON with a list of grammars. GrammarError.
  GrammarMatcher(std::shared_ptr<const GrammarTokenizer> tokenizer, const std::string& grammar);
  ~GrammarMatcher();
  GrammarMatcher(const GrammarMatcher&) = delete;
  std::unique_ptr<GrammarMatcher> clone() const;  // shares nothing with it

  // The text goes on with these tokens. GrammarError where the grammar doesn't allow them.
  void consume(std::span<const std::int32_t> tokens);
  // Nothing but an end may follow.
  bool is_complete() const;
  // Tokens that come next in any case, as the model writes them: some of those that are sure, maybe none. GrammarError.
  std::span<const std::int32_t> forced();
  // Which tokens may come next: mask_words(vocab_size) words as a TokenMask has them. GrammarError where there is none.
  void compute_mask(std::vector<std::uint32_t>& mask);
  // Ends what another thread has the matcher do, soon and with a GrammarError, and all that comes later.
  void cancel();

 private:
  GrammarMatcher(std::shared_ptr<const GrammarTokenizer> tokenizer, llg::Matcher* handle);
  void check(std::int32_t status);

  const std::shared_ptr<const GrammarTokenizer> tokenizer_;
  llg::Matcher* handle_;
  llg::Cancellation* cancellation_ = nullptr;
  std::array<std::int32_t, 64> forced_;
};

}  // namespace minisgl
