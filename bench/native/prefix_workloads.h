// What is asked of a prefix cache, one request after the other, the same with each seed.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"

namespace minisgl {

struct Turn {
  std::vector<std::int32_t> tokens;  // prompt and answer
  std::size_t prompt_len = 0;
  int conversation = 0;
  bool is_last = false;  // of its conversation
};

// Conversations behind system prompts, so many of them alive at once. Whose turn comes next is chance; where one ends
// another begins. Lengths are in tokens, [least, more than the most).
struct Conversations {
  struct Length {
    unsigned least, end;
  };
  int num_systems, num_alive, least_turns, most_turns;
  Length system, question, answer;
  bool is_zipf = true;       // the k-th system prompt is asked for 1/k as often as the first, else all alike
  double scans = 0;          // share of the requests that are documents, read once
  Length document = {0, 0};  // theirs
  int turns_of_fashion = 0;  // after so many requests all system prompts are others; 0: never
};

inline constexpr Conversations kChats = {.num_systems = 64,
                                         .num_alive = 128,
                                         .least_turns = 1,
                                         .most_turns = 8,
                                         .system = {512, 2048},
                                         .question = {16, 256},
                                         .answer = {32, 512}};

// Chats of up to 8 turns, each behind one of 64 system prompts; the same beside documents; agents that call tools 12
// times, behind one of 4 long system prompts; single questions behind system prompts that change.
inline Conversations workload(std::string_view name) {
  Conversations result = kChats;
  if (name == "scans") {
    result.scans = 0.1;
    result.document = {2048, 8192};
  } else if (name == "agents") {
    result = {.num_systems = 4,
              .num_alive = 24,
              .least_turns = 12,
              .most_turns = 12,
              .system = {3000, 6000},
              .question = {700, 1300},
              .answer = {64, 256},
              .is_zipf = false};
  } else if (name == "fashions") {
    result.num_alive = result.most_turns = 1;
    result.turns_of_fashion = 2500;
  } else {
    MINISGL_CHECK(name == "chats", "no workload has the name ", name);
  }
  return result;
}

class Requests {
 public:
  explicit Requests(const Conversations& with) : with_(with) {
    choose_systems();
    for (int i = 0; i < with.num_alive; ++i) alive_.push_back(begin());
  }

  Turn next() {
    if (with_.turns_of_fashion > 0 && ++num_requests_ % with_.turns_of_fashion == 0) choose_systems();
    if (with_.scans > 0 && random_() % 1000 < 1000 * with_.scans) {
      Turn scan{.tokens = text(with_.document), .conversation = num_conversations_++, .is_last = true};
      scan.prompt_len = scan.tokens.size();
      return scan;
    }
    Alive& alive = alive_[random_() % alive_.size()];
    append(alive.turn.tokens, text(with_.question));
    alive.turn.prompt_len = alive.turn.tokens.size();
    append(alive.turn.tokens, text(with_.answer));
    if (--alive.turns_left > 0) return alive.turn;
    alive.turn.is_last = true;
    return std::exchange(alive, begin()).turn;
  }

 private:
  using Tokens = std::vector<std::int32_t>;
  struct Alive {
    Turn turn;
    int turns_left;
  };

  void choose_systems() {
    systems_.clear();
    std::vector<double> weights;
    for (int i = 0; i < with_.num_systems; ++i) {
      systems_.push_back(text(with_.system));
      weights.push_back(with_.is_zipf ? 1.0 / (i + 1) : 1.0);
    }
    choose_ = std::discrete_distribution<std::size_t>(weights.begin(), weights.end());
  }
  Alive begin() {
    const auto more = static_cast<unsigned>(with_.most_turns - with_.least_turns + 1);
    return {.turn = {.tokens = systems_[choose_(random_)], .conversation = num_conversations_++},
            .turns_left = with_.least_turns + static_cast<int>(random_() % more)};
  }
  Tokens text(const Conversations::Length& length) {
    Tokens tokens(length.least + random_() % (length.end - length.least));
    for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(random_() % 50000);
    return tokens;
  }
  static void append(Tokens& tokens, const Tokens& more) { tokens.insert(tokens.end(), more.begin(), more.end()); }

  Conversations with_;
  std::mt19937 random_{1};
  std::vector<Tokens> systems_;
  std::discrete_distribution<std::size_t> choose_;
  std::vector<Alive> alive_;
  int num_conversations_ = 0, num_requests_ = 0;
};

}  // namespace minisgl
