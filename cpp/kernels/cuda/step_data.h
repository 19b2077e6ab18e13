// A step as the kernels read it: one block of device memory, filled with one copy. Where its parts lie depends on
// nothing but the numbers of rows, sequences and logits, so a captured graph finds them again.
#pragma once

#include <cstdint>

namespace minisgl::cuda {

// A sequence's rows. One of 0 rows fills up a captured batch.
struct SequenceEntry {
  std::int32_t first_row;
  std::int32_t num_rows;  // of a decode, which is one row: all of its sequence; several attend to what the step stores
  std::int32_t start_position;
  std::int32_t first_page;  // index of its page table in StepData::pages
};

constexpr int kMostTop = 32;  // alternatives of a token; the engine refuses requests for more

// LogitQuery without pointers.
struct QueryEntry {
  double uniform;  // in [0, 1), of the request's seed and the token's position
  std::int32_t active;
  std::int32_t target;  // LogitQuery::kSample or a token
  std::int32_t num_top;
  float temperature;
  std::int32_t top_k;
  float top_p, min_p;
  float repetition_penalty, presence_penalty, frequency_penalty;
  std::int32_t seen_slot;  // -1: no penalty
  std::int32_t first_bias, num_bias;
  std::int32_t first_banned, num_banned;
  std::int32_t first_mask, num_mask_words;  // 0 words: every token is allowed
};

struct BiasEntry {
  std::int32_t token;
  float bias;
};

struct OutputEntry {
  std::int32_t token;
  float logprob;
  std::int32_t num_top;
  std::int32_t top_token[kMostTop];
  float top_logprob[kMostTop];
};

struct StepData {
  std::int32_t num_rows = 0, num_sequences = 0, num_decodes = 0, num_prefills = 0, num_logits = 0;
  std::int32_t num_hidden = 0;
  std::int32_t most_prefill_rows = 0;        // the most of one sequence
  const std::int32_t* tokens = nullptr;      // [num_rows] -1 - i: drawn_before[i]
  const std::int32_t* positions = nullptr;   // [num_rows]
  const std::int32_t* cache_rows = nullptr;  // [num_rows] page * page_size + place in it; -1: nowhere
  const SequenceEntry* sequences = nullptr;  // [num_sequences] in a replayed step one for each row
  const std::int32_t* decodes = nullptr;     // [num_decodes] entries that are one row or none, unless all are prefills
  const std::int32_t* prefills = nullptr;    // [num_prefills] the others
  const std::int32_t* logit_rows =
      nullptr;                          // [num_logits + num_hidden] the latter: rows whose hidden states are wanted
  const QueryEntry* queries = nullptr;  // [num_logits]
  // One after the other and of lengths that no kernel knows; all of them are indexed from where the page tables begin.
  const std::int32_t* pages = nullptr;
  const BiasEntry* biases = nullptr;
  const std::int32_t* banned = nullptr;
  const std::uint32_t* masks = nullptr;        // one bit per token
  std::int32_t* drawn = nullptr;               // [num_logits] the answers' tokens, for the next step
  const std::int32_t* drawn_before = nullptr;  // those of the step before
};

}  // namespace minisgl::cuda
