// The bytes of a frame (plan_codec.h) as both of its ends know them.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>

#include "engine/plan_codec.h"

namespace minisgl::plan_wire {

enum class Kind : std::uint8_t { add = 1, remove, step, shut_down, append, pause, copy, mask, draw };

// What a frame begins with.
struct FrameHeader {
  std::array<char, 3> magic{'M', 'S', 'P'};
  std::uint8_t version = kPlanVersion;
};

// Sections behind a plan's lists, as bits of the byte that says which of them follow. Ordinary plans have none.
enum Section : std::uint8_t {
  kScores = 1,
  kHidden = 2,
  kAdapters = 4,
  kCopies = 8,
  kCopiesBefore = 16,
  kAwaitedMasks = 32,
  kAllSections = 63
};

// A SequenceStep. Where its rows and its new pages begin is the sum of those before it, and need not be said. Its draws
// say which rows' logits are wanted for them.
struct WireSequence {
  std::uint32_t id_low, id_high;
  std::int32_t num_rows, start_position, num_kept_pages, num_new_pages, num_draws;
};

// A prompt row that is scored with the token that follows it.
struct WireScore {
  std::int32_t row, token;
};

// A field of SequenceStep that few sequences have.
struct WireField {
  std::int32_t sequence, value;  // index into the plan's sequences
};

}  // namespace minisgl::plan_wire
