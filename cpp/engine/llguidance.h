// What the engine uses of llguidance, a library in Rust that matches grammars: the functions that the extension of its
// Python package exports to C, looked up in the file. Nothing of Python is called.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace minisgl {

// These are laid out as the library's own of kLlguidanceVersion.
namespace llg {

struct Tokenizer;
struct Matcher;
struct Cancellation;  // of one matcher

using Tokenize = std::size_t (*)(const void* user_data, const std::uint8_t* bytes, std::size_t num_bytes,
                                 std::uint32_t* tokens, std::size_t max_tokens);

struct TokenizerInit {
  std::size_t struct_size = sizeof(TokenizerInit);
  std::uint32_t vocab_size = 0;
  std::uint32_t eos = 0;
  const std::uint32_t* token_lengths = nullptr;  // [vocab_size]
  const std::uint8_t* token_bytes = nullptr;     // one after the other
  const char* tokenizer_json = nullptr;
  bool tokenize_assumes_string = false;
  Tokenize tokenize = nullptr;
  bool tokenizes_greedily = false;  // in place of `tokenize`; nothing is forced then
  const void* tokenize_user_data = nullptr;
  const char* const* slices = nullptr;  // null: the library's
  const std::uint32_t* more_eos = nullptr;
  std::uint32_t num_more_eos = 0;
};

struct Limits {
  std::size_t max_items_in_row;
  std::uint64_t initial_lexer_fuel, step_lexer_fuel;
  std::size_t step_max_items, max_lexer_states, max_grammar_size;
  bool precomputes_large_lexemes, verbose_errors;
};

struct MatcherInit {
  const Tokenizer* tokenizer;
  std::uint32_t log_level_buffer, log_level_stderr;
  bool ff_tokens_ok, backtrack_ok;
  Limits limits;
};

}  // namespace llg

inline constexpr const char* kLlguidanceVersion = "1.9.1";

// Functions that give an int answer with -1 after an error, which get_error says.
struct LlguidanceLibrary {
  const char* (*get_version)();
  llg::Tokenizer* (*new_tokenizer)(const llg::TokenizerInit*, char* error, std::size_t error_size);
  void (*free_tokenizer)(llg::Tokenizer*);
  void (*set_defaults)(llg::MatcherInit*, const llg::Tokenizer*);
  llg::Matcher* (*new_matcher)(const llg::MatcherInit*, const char* kind, const char* grammar);  // never null
  llg::Matcher* (*clone_matcher)(const llg::Matcher*);
  void (*free_matcher)(llg::Matcher*);
  std::int32_t (*compute_mask)(llg::Matcher*, std::uint32_t* mask, std::size_t num_bytes);
  std::int32_t (*consume)(llg::Matcher*, const std::uint32_t* tokens, std::size_t num_tokens);
  // The number of tokens that are sure to come next; at most `max_tokens` of them are written.
  std::int32_t (*compute_forced)(llg::Matcher*, std::uint32_t* tokens, std::size_t max_tokens);
  bool (*is_stopped)(const llg::Matcher*);  // nothing but an end may follow
  const char* (*get_error)(llg::Matcher*);  // null: none
  llg::Cancellation* (*get_cancellation)(llg::Matcher*);
  void (*cancel)(const llg::Cancellation*);  // from any thread
  void (*free_cancellation)(llg::Cancellation*);

  // InputError where the file can't be loaded, is of another version, or lacks a function.
  static LlguidanceLibrary load(const std::string& path);
};

}  // namespace minisgl
