// What may be known of a request's tokens before they are drawn.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

namespace minisgl {

struct Request;

// One request's. The engine thread asks it whenever the request has new tokens, before the next of its steps is
// planned.
class Lookahead {
 public:
  struct Ahead {
    std::vector<std::int32_t> forced;  // tokens that come next without a draw; delivered as if they had been drawn
    // Tokens that may come after those. A step computes them all at once and keeps those that it draws itself. They are
    // dropped where the request has penalties, whose counts know one draw per step.
    std::vector<std::int32_t> drafts;
  };

  virtual ~Lookahead() = default;
  // `tokens`: the prompt and what was generated. What goes beyond max_tokens is dropped.
  virtual Ahead look(std::span<const std::int32_t> tokens) = 0;
};

// Called when a request is admitted; null where nothing is known of it. A request with a lookahead is planned only
// while its latest token is known.
using MakeLookahead = std::function<std::unique_ptr<Lookahead>(const Request&)>;

}  // namespace minisgl
