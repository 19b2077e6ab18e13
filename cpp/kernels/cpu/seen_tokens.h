// Which tokens a sequence has seen, in the host's memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/query.h"

namespace minisgl {

struct TokenCounts {
  std::vector<std::uint8_t> in_prompt;   // [vocab] 0 or 1; empty where the prompt doesn't count
  std::vector<std::uint32_t> in_output;  // [vocab]
};

struct CpuSeenTokens final : SeenTokens {
  CpuSeenTokens(std::int64_t vocab_size, bool in_prompt)
      : CpuSeenTokens(TokenCounts{std::vector<std::uint8_t>(static_cast<std::size_t>(in_prompt ? vocab_size : 0)),
                                  std::vector<std::uint32_t>(static_cast<std::size_t>(vocab_size))}) {}
  explicit CpuSeenTokens(TokenCounts from) : counts(std::move(from)) {}

  void add_prompt(std::span<const std::int32_t> tokens) override {
    if (counts.in_prompt.empty()) return;
    for (const std::int32_t token : tokens) counts.in_prompt[static_cast<std::size_t>(token)] = 1;
  }
  void add_output(std::span<const std::int32_t> tokens) override {
    for (const std::int32_t token : tokens) ++counts.in_output[static_cast<std::size_t>(token)];
  }

  TokenCounts counts;
};

}  // namespace minisgl
