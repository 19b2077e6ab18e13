// Lookaheads for random requests: a third of them drafts what the reference says, mostly rightly; a third forces
// tokens; a third has none.
#pragma once

#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "engine/fake_model.h"

namespace minisgl::testing_support {

inline std::vector<std::int32_t> forced_after(std::span<const std::int32_t> tokens) {
  const std::int32_t last = tokens.back();
  if (last % 4 != 0) return {};
  return {(last + 1) % 50, 7, (last + 2) % 50};
}

// How a request is looked ahead for.
inline bool drafts(const Request& request) {
  return request.id % 3 == 0;
}
inline Force force_of(const Request& request) {
  return request.id % 3 == 1 ? Force(forced_after) : Force();
}

class Guesser final : public Lookahead {
 public:
  explicit Guesser(const Request& request) : tokens_(request.prompt), random_(static_cast<unsigned>(request.id)) {
    const auto generated = reference_generate(request, fake_spec()).tokens;
    tokens_.insert(tokens_.end(), generated.begin(), generated.end());
  }
  Ahead look(std::span<const std::int32_t> tokens) override {
    Ahead ahead;
    for (std::size_t i = tokens.size(); i < std::min(tokens_.size(), tokens.size() + random_() % 8); ++i) {
      ahead.drafts.push_back(random_() % 6 == 0 ? static_cast<std::int32_t>(random_() % 50) : tokens_[i]);
    }
    if (random_() % 4 == 0) ahead.drafts.push_back(1);  // also beyond the end
    return ahead;
  }

 private:
  std::vector<std::int32_t> tokens_;  // the whole of what will be
  std::mt19937 random_;
};

class Forcer final : public Lookahead {
 public:
  Ahead look(std::span<const std::int32_t> tokens) override { return {.forced = forced_after(tokens), .drafts = {}}; }
};

inline std::unique_ptr<Lookahead> make_test_lookahead(const Request& request) {
  if (drafts(request)) return std::make_unique<Guesser>(request);
  if (force_of(request)) return std::make_unique<Forcer>();
  return nullptr;
}

}  // namespace minisgl::testing_support
