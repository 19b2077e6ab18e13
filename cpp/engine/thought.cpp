// States and moves of a thought's parser, which text/thought_table.py makes for a vocabulary.
#include "engine/thought.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace minisgl {

Thought::Thought(ThoughtBudget budget) : budget_(std::move(budget)) {}

void Thought::note(std::span<const std::int32_t> tokens) {
  for (const std::int32_t token : tokens) {
    pass_to([&](std::int32_t one) { return one == token; });  // as the engine did that drew the token
    if (is_over()) return;
    !closing().empty() && closing().front() == token ? pass_over() : draw(token);
  }
}

void Thought::pass_to(const std::function<bool(std::int32_t)>& may_stand) {
  const std::span<const std::int32_t> left = closing();
  const auto next = std::ranges::find_if(left, may_stand);
  if (next == left.end() && num_closing_ == 0) return;
  for (auto before = next - left.begin(); before > 0; --before) pass_over();
}

std::span<const std::int32_t> Thought::closing() const {
  if (is_over() || thought() < 0 || num_tokens_ < budget_.max_tokens) return {};
  return std::span(budget_.closings[static_cast<std::size_t>(thought())]).subspan(num_closing_);
}

void Thought::pass_over() {
  const std::size_t left = closing().size();
  MINISGL_CHECK(left > 0, "no thought is to be closed");
  ++num_closing_;
  if (left == 1) state_ = -1;
}

std::int32_t Thought::find_move(std::int32_t state, std::int32_t token, std::int32_t otherwise) const {
  const auto move = std::ranges::lower_bound(budget_.moves, std::pair(state, token), {},
                                             [](const ThoughtMove& one) { return std::pair(one.state, one.token); });
  return move != budget_.moves.end() && move->state == state && move->token == token ? move->next : otherwise;
}

void Thought::draw(std::int32_t token) {
  if (thought() < 0) {
    state_ = find_move(state_, token, -1);
    return;
  }
  const auto first = static_cast<std::int32_t>(std::ranges::find(budget_.states, thought()) - budget_.states.begin());
  state_ = find_move(state_, token, find_move(first, token, first));
  ++num_tokens_;
}

}  // namespace minisgl
