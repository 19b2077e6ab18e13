// What the prefix tree finds where it can't keep everything, and what it costs.
//
// prefix_hits: the workloads of prefix_workloads.h. Argument: tokens of the cache. Counters: hit_rate (prompt tokens
// found of those looked for), and over that of a cache which keeps all that was ever computed: the tree's, that of the
// optimum, which knows the future, and that of a policy which knows what is over, but not whose turn comes next.
// prefix_operations: a prompt found, and one inserted, per page of 16 tokens.
#include <benchmark/benchmark.h>

#include <map>
#include <random>
#include <span>
#include <string_view>
#include <vector>

#include "cache/prefix_tree.h"
#include "prefix_bounds.h"
#include "prefix_workloads.h"

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

constexpr int kRequests = 20000;

double hit_rate(std::string_view name, std::int64_t cache_tokens) {
  Cache cache(cache_tokens);
  Requests requests(workload(name));
  std::int64_t found = 0, asked = 0;
  for (int i = 0; i < kRequests; ++i) {
    const Turn turn = requests.next();
    asked += static_cast<std::int64_t>(turn.prompt_len);
    found += cache.prefill(std::span(turn.tokens).first(turn.prompt_len));
    cache.finish(turn.tokens);
  }
  return static_cast<double>(found) / static_cast<double>(asked);
}

void prefix_hits(benchmark::State& state, const char* name) {
  constexpr std::int64_t all = 64 << 20;  // more than is ever computed
  static std::map<std::string_view, double> ceilings;
  static std::map<std::string_view, PageTrace> traces;
  if (!ceilings.contains(name)) {
    ceilings[name] = hit_rate(name, all);
    traces.try_emplace(name, Requests(workload(name)), kRequests, kPage);
  }
  double rate = 0;
  for (auto _ : state) rate = hit_rate(name, state.range(0));
  const auto best = [&](Knows knows, std::int64_t num_tokens) {
    return static_cast<double>(BestCache(traces.at(name), knows).run(num_tokens / kPage));
  };
  const double most = best(Knows::next_use, all);
  state.counters["hit_rate"] = rate;
  state.counters["over_unbounded"] = rate / ceilings[name];
  state.counters["belady"] = best(Knows::next_use, state.range(0)) / most;
  state.counters["knows_ends"] = best(Knows::rate, state.range(0)) / most;
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

void at_sizes(benchmark::internal::Benchmark* benchmark) {
  for (const int size : {64, 128, 192, 256, 512}) benchmark->Arg(size << 10);
  benchmark->Iterations(1)->Unit(benchmark::kMillisecond);
}

BENCHMARK_CAPTURE(prefix_hits, chats, "chats")->Apply(at_sizes);
BENCHMARK_CAPTURE(prefix_hits, scans, "scans")->Apply(at_sizes);
BENCHMARK_CAPTURE(prefix_hits, agents, "agents")->Apply(at_sizes);
BENCHMARK_CAPTURE(prefix_hits, fashions, "fashions")->Apply(at_sizes);
BENCHMARK_CAPTURE(prefix_operations, finds, true)->Arg(8)->Arg(128)->Arg(1024);
BENCHMARK_CAPTURE(prefix_operations, inserts, false)->Arg(8)->Arg(128)->Arg(1024);

}  // namespace
}  // namespace minisgl
