// What the prefix tree finds where it can't keep everything, and what it costs.
//
// prefix_hits: chats of several turns, each behind one of 64 system prompts (Zipf: the k-th is asked for 1/k as often
// as the first), 128 of them alive at once; whose turn comes next is chance. Argument: tokens of the cache. Counters:
// hit_rate (prompt tokens found of those looked for), and the same over that of a cache which keeps all that was ever
// computed, the ceiling. prefix_operations: a prompt found, and one inserted, per page of 16 tokens.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <span>
#include <vector>

#include "cache/prefix_tree.h"

namespace minisgl {
namespace {

constexpr int kPage = 16;
using Tokens = std::vector<std::int32_t>;

// Whole requests, one after the other: what they find, and what they leave.
class Cache {
 public:
  explicit Cache(std::int64_t num_tokens) : pages_(num_tokens / kPage), tree_(pages_, kPage) {}

  // Returns how many tokens of the prompt were found, a begun page among them as the scheduler does it.
  std::int64_t prefill(std::span<const std::int32_t> prompt) {
    const auto most = prompt.first(prompt.size() - 1);
    mine_.clear();
    tree_.take({}, most, mine_);
    std::int64_t found = std::ssize(mine_) * kPage;
    num_known_ = std::ssize(mine_);
    if (!mine_.empty()) {
      const auto begun = tree_.find_begun(mine_.back(), most.subspan(static_cast<std::size_t>(found)), ++now_);
      if (2 * begun.num_tokens >= kPage) found += begun.num_tokens;
    }
    return found;
  }
  // The request is done: all of `tokens` was computed.
  void finish(std::span<const std::int32_t> tokens) {
    const std::int64_t missing = (std::ssize(tokens) + kPage - 1) / kPage - std::ssize(mine_);
    if (tree_.allocate(missing, mine_)) {
      tree_.insert({.space = {}, .tokens = tokens, .num_known = num_known_, .keep_begun = true, .now = ++now_}, mine_,
                   replaced_);
      tree_.release(replaced_);
      replaced_.clear();
    }
    tree_.release(mine_);
  }

 private:
  PageAllocator pages_;
  PrefixTree tree_;
  std::vector<PageId> mine_, replaced_;
  std::int64_t num_known_ = 0;
  std::uint64_t now_ = 0;
};

class Chats {
 public:
  Chats() {
    for (int i = 0; i < kSystems; ++i) {
      systems_.push_back(text(512, 2048));
      weights_.push_back(1.0 / (i + 1));
    }
    choose_ = std::discrete_distribution<int>(weights_.begin(), weights_.end());
    for (int i = 0; i < kAlive; ++i) chats_.push_back(begin());
  }

  // Returns (found, looked for) over so many requests.
  std::pair<std::int64_t, std::int64_t> run(Cache& cache, int num_requests) {
    std::int64_t found = 0, asked = 0;
    for (int i = 0; i < num_requests; ++i) {
      Chat& chat = chats_[random_() % chats_.size()];
      append(chat.tokens, text(16, 256));
      asked += std::ssize(chat.tokens);
      found += cache.prefill(chat.tokens);
      append(chat.tokens, text(32, 512));
      cache.finish(chat.tokens);
      if (--chat.turns_left == 0) chat = begin();
    }
    return {found, asked};
  }

 private:
  static constexpr int kSystems = 64, kAlive = 128;
  struct Chat {
    Tokens tokens;
    int turns_left;
  };

  Chat begin() { return {systems_[static_cast<std::size_t>(choose_(random_))], 1 + static_cast<int>(random_() % 8)}; }
  Tokens text(unsigned low, unsigned high) {
    Tokens tokens(low + random_() % (high - low));
    for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(random_() % 50000);
    return tokens;
  }
  static void append(Tokens& tokens, const Tokens& more) { tokens.insert(tokens.end(), more.begin(), more.end()); }

  std::mt19937 random_{1};
  std::vector<Tokens> systems_;
  std::vector<double> weights_;
  std::discrete_distribution<int> choose_;
  std::vector<Chat> chats_;
};

double hit_rate(std::int64_t cache_tokens) {
  constexpr int num_requests = 20000;
  Cache cache(cache_tokens);
  const auto [found, asked] = Chats().run(cache, num_requests);
  return static_cast<double>(found) / static_cast<double>(asked);
}

void prefix_hits(benchmark::State& state) {
  static const double ceiling = hit_rate(16 << 20);  // all that is ever computed
  double rate = 0;
  for (auto _ : state) rate = hit_rate(state.range(0));
  state.counters["hit_rate"] = rate;
  state.counters["over_unbounded"] = rate / ceiling;
}

// Argument: pages of the prompt. With `finds` it is there, else it is new and pushes out others.
void prefix_operations(benchmark::State& state, bool finds) {
  Cache cache(1 << 20);
  std::mt19937 random(1);
  Tokens tokens(static_cast<std::size_t>(state.range(0)) * kPage, 7);
  for (auto _ : state) {
    if (!finds) tokens.front() = static_cast<std::int32_t>(random());
    benchmark::DoNotOptimize(cache.prefill(tokens));
    cache.finish(tokens);
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}

BENCHMARK(prefix_hits)->RangeMultiplier(2)->Range(64 << 10, 512 << 10)->Iterations(1)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(prefix_operations, finds, true)->Arg(8)->Arg(128)->Arg(1024);
BENCHMARK_CAPTURE(prefix_operations, inserts, false)->Arg(8)->Arg(128)->Arg(1024);

}  // namespace
}  // namespace minisgl
