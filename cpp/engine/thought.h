// The thought of one answer: whether the tokens so far are in one, how many it has, and what closes it when its budget
// is used up.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "engine/request.h"

namespace minisgl {

// A function of the tokens alone: an engine that goes on with the answer of another comes to the same.
class Thought {
 public:
  // `budget` is valid (validation.cpp) and has a limit.
  explicit Thought(ThoughtBudget budget);

  // The answer goes on with these tokens.
  void note(std::span<const std::int32_t> tokens);
  // There is no thought to be closed any more.
  bool is_over() const { return state_ < 0; }
  // Tokens that close the thought and haven't come; none where it isn't to be closed yet.
  std::span<const std::int32_t> closing() const;
  // The first of closing() that may come next is next, and those before it are passed over. Where none may, a closing
  // that hasn't begun waits (the answer may be within a character), and one that has begun is over.
  void pass_to(const std::function<bool(std::int32_t)>& may_stand);
  // Whether the token after the next may have to close the thought: it can't be drawn before the next one is known.
  bool is_near_end() const { return !is_over() && num_tokens_ + 1 >= budget_.max_tokens; }

 private:
  std::int32_t thought() const { return budget_.states[static_cast<std::size_t>(state_)]; }
  std::int32_t find_move(std::int32_t state, std::int32_t token, std::int32_t otherwise) const;
  void pass_over();
  void draw(std::int32_t token);

  ThoughtBudget budget_;
  std::int32_t state_ = 0;
  std::int64_t num_tokens_ = 0;  // of the thought
  std::size_t num_closing_ = 0;  // tokens of its closing that came, or were passed over
};

}  // namespace minisgl
