// llguidance's handles as objects, its errors as sentences.
#include "engine/grammar.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/error.h"
#include "kernels/processors.h"

namespace minisgl {
namespace {

// Of one matcher, half a kB each. A string whose length has a bound takes about four per character.
constexpr std::size_t kMostLexerStates = 100'000;
constexpr std::size_t kMostErrorBytes = 1000;

// What it says, without the state of the matcher, which follows in a tag; at most so many bytes of it, all of them
// whole characters.
std::string cut(std::string text) {
  text.resize(std::min(text.find("\n<"), text.size()));
  if (text.size() <= kMostErrorBytes) return text;
  std::size_t end = kMostErrorBytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

// What llguidance asks for the tokens of a text; `merges` are a TokenMerges.
std::size_t tokenize(const void* merges, const std::uint8_t* bytes, std::size_t num_bytes, std::uint32_t* tokens,
                     std::size_t max_tokens) {
  const std::vector<std::int32_t> made = static_cast<const TokenMerges*>(merges)->tokenize({bytes, num_bytes});
  std::copy_n(made.begin(), std::min(made.size(), max_tokens), tokens);
  return made.size();
}

}  // namespace

GrammarTokenizer::GrammarTokenizer(const LlguidanceLibrary& library, const GrammarVocabulary& vocabulary,
                                   std::int64_t vocab_size)
    : library_(library), vocab_size_(vocab_size), ends_(vocabulary.ends) {
  if (ends_.empty()) throw InputError("the model has no end token, so no grammar can end");
  for (const std::int32_t end : ends_) {
    if (end < 0 || end >= vocab_size) throw InputError(concat("the end token ", end, " isn't the model's"));
  }
  std::uint64_t num_bytes = 0;
  for (const std::uint32_t length : vocabulary.lengths) num_bytes += length;
  if (num_bytes != vocabulary.bytes.size()) {
    throw InputError(concat("tokens of ", num_bytes, " bytes together have ", vocabulary.bytes.size()));
  }
  std::vector<std::uint32_t> lengths = vocabulary.lengths;
  lengths.resize(static_cast<std::size_t>(vocab_size));
  std::vector<std::uint32_t> ends(ends_.begin(), ends_.end());
  llg::TokenizerInit init;
  init.vocab_size = static_cast<std::uint32_t>(vocab_size);
  init.eos = ends.front();
  init.token_lengths = lengths.data();
  init.token_bytes = reinterpret_cast<const std::uint8_t*>(vocabulary.bytes.data());
  if (!vocabulary.merges.empty()) {
    merges_.emplace(lengths, vocabulary.bytes, vocabulary.merges);
    init.tokenize = tokenize;
    init.tokenize_user_data = &*merges_;
  } else {
    init.tokenizes_greedily = true;
  }
  init.more_eos = ends.data() + 1;
  init.num_more_eos = static_cast<std::uint32_t>(ends.size()) - 1;
  std::array<char, 512> error{};
  handle_ = library_.new_tokenizer(&init, error.data(), error.size());
  if (!handle_) throw InputError(concat("llguidance can't take the model's vocabulary: ", error.data()));
}

GrammarTokenizer::~GrammarTokenizer() {
  library_.free_tokenizer(handle_);
}

GrammarMatcher::GrammarMatcher(std::shared_ptr<const GrammarTokenizer> tokenizer, llg::Matcher* handle)
    : tokenizer_(std::move(tokenizer)), handle_(handle) {
  cancellation_ = tokenizer_->library().get_cancellation(handle_);
}

GrammarMatcher::GrammarMatcher(std::shared_ptr<const GrammarTokenizer> tokenizer, const std::string& grammar)
    : tokenizer_(std::move(tokenizer)) {
  const LlguidanceLibrary& library = tokenizer_->library();
  llg::MatcherInit init;
  library.set_defaults(&init, tokenizer_->handle());
  init.log_level_stderr = 0;
  init.ff_tokens_ok = tokenizer_->can_force();
  init.limits.max_lexer_states = kMostLexerStates;
  init.limits.verbose_errors = false;
  handle_ = library.new_matcher(&init, "llguidance", grammar.c_str());
  if (const char* error = library.get_error(handle_)) {
    const std::string sentence = cut(error);
    library.free_matcher(handle_);
    throw GrammarError(concat("the grammar can't be read: ", sentence));
  }
  cancellation_ = library.get_cancellation(handle_);
}

GrammarMatcher::~GrammarMatcher() {
  tokenizer_->library().free_cancellation(cancellation_);
  tokenizer_->library().free_matcher(handle_);
}

std::unique_ptr<GrammarMatcher> GrammarMatcher::clone() const {
  return std::unique_ptr<GrammarMatcher>(new GrammarMatcher(tokenizer_, tokenizer_->library().clone_matcher(handle_)));
}

void GrammarMatcher::check(std::int32_t status) {
  if (status >= 0) return;
  const char* error = tokenizer_->library().get_error(handle_);
  throw GrammarError(concat("the grammar can't go on: ", cut(error ? error : "no cause is known")));
}

void GrammarMatcher::consume(std::span<const std::int32_t> tokens) {
  check(tokenizer_->library().consume(handle_, reinterpret_cast<const std::uint32_t*>(tokens.data()), tokens.size()));
}

bool GrammarMatcher::is_complete() const {
  return tokenizer_->library().is_stopped(handle_);
}

std::span<const std::int32_t> GrammarMatcher::forced() {
  if (!tokenizer_->can_force()) return {};
  const std::int32_t count =
      tokenizer_->library().compute_forced(handle_, reinterpret_cast<std::uint32_t*>(forced_.data()), forced_.size());
  check(count);
  return std::span(forced_).first(std::min(static_cast<std::size_t>(count), forced_.size()));
}

void GrammarMatcher::compute_mask(std::vector<std::uint32_t>& mask) {
  mask.resize(static_cast<std::size_t>(mask_words(tokenizer_->vocab_size())));
  check(tokenizer_->library().compute_mask(handle_, mask.data(), mask.size() * sizeof(std::uint32_t)));
  if (std::ranges::all_of(mask, [](std::uint32_t word) { return word == 0; })) {
    throw GrammarError("the grammar can't go on: it allows none of the model's tokens");
  }
}

void GrammarMatcher::cancel() {
  tokenizer_->library().cancel(cancellation_);
}

}  // namespace minisgl
