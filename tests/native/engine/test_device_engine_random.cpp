// Random requests with preemption, stop tokens, grammars and aborts; on the GPU with recorded steps and steps planned
// ahead. The vocabulary is so small that every token comes with the model's whole distribution: each must be the one
// that its request's parameters, counts and seed draw from that, and the distributions must be those of the request
// alone: nearly, or bit for bit where the device is deterministic.
#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "engine/device_answers.h"
#include "engine/letters.h"
#include "engine/validation.h"
#include "kernels/devices.h"
#include "kernels/philox.h"
#include "kernels/sampling_reference.h"

namespace minisgl::testing_support {
namespace {

constexpr std::int32_t kVocab = max_logprobs;

struct Outcome {
  std::vector<TokenOutput> tokens;
  FinishReason finish = FinishReason::none;
};
using Outcomes = std::map<std::uint64_t, Outcome>;

// The letters of even places, and of odd ones; no answer is as long.
constexpr const char* kGrammar = "start: /([a-f][g-m]){300}/";

bool is_allowed(std::int32_t token, std::size_t place) {
  const std::string text = letters_of(token);
  return place % 2 == 0 ? text >= "a" && text <= "f" : text >= "g" && text <= "m";
}

std::vector<Request> random_requests(int count) {
  std::mt19937 random(11);
  const auto one_in = [&](unsigned n) { return random() % n == 0; };
  std::vector<Request> requests;
  for (int id = 0; id < count; ++id) {
    Request& request = requests.emplace_back();
    request.id = static_cast<std::uint64_t>(id);
    const std::size_t length = 1 + random() % (one_in(8) ? 150 : 20);
    for (std::size_t i = 0; i < length; ++i) request.prompt.push_back(static_cast<std::int32_t>(random() % kVocab));
    request.max_tokens = 1 + static_cast<std::int64_t>(random() % (one_in(10) ? 200 : 40));
    request.logprobs = kVocab;
    for (int i = 0; i < 2 && one_in(2); ++i)
      request.stop_token_ids.push_back(static_cast<std::int32_t>(random() % kVocab));
    if (one_in(3))
      request.min_tokens = static_cast<std::int64_t>(random()) % std::min<std::int64_t>(request.max_tokens, 8);
    SamplingParams& sampling = request.sampling;
    sampling.seed = random();
    sampling.temperature = one_in(3) ? 0.0f : 0.5f + 0.1f * static_cast<float>(random() % 10);
    if (one_in(4)) sampling.top_k = static_cast<std::int32_t>(1 + random() % kVocab);
    if (one_in(4)) sampling.top_p = 0.8f;
    if (one_in(6)) sampling.min_p = 0.05f;
    if (one_in(4)) sampling.presence_penalty = 0.5f;
    if (one_in(4)) sampling.frequency_penalty = 0.25f;
    if (one_in(6)) sampling.logit_bias = {{static_cast<std::int32_t>(random() % kVocab), 1.5f}};
    const auto add_tokens = [&](std::vector<std::int32_t>& tokens, int count) {
      while (count-- > 0) tokens.push_back(static_cast<std::int32_t>(random() % kVocab));
    };
    if (one_in(6)) add_tokens(sampling.allowed_token_ids, 8);
    if (one_in(6)) {
      sampling.bad_words.resize(100);
      for (std::vector<std::int32_t>& word : sampling.bad_words) add_tokens(word, one_in(20) ? 1 : 2);
    }
    if (id % 3 > 0 || library_path().empty()) continue;
    request.grammar = kGrammar;
    sampling.allowed_token_ids.clear();
  }
  return requests;
}

struct Case {
  DeviceKind kind;
  bool exact;  // the device is deterministic
  std::int64_t head_dim;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << device_label(c.kind) << (c.exact ? " exact" : "") << ", heads of " << c.head_dim;
}

std::unique_ptr<Engine> make_engine(const Case& c, const EngineConfig& options) {
  auto device =
      c.kind == DeviceKind::cuda ? make_cuda_device(0, 2, nullptr, "", c.exact) : make_cpu_device(c.exact ? 2 : 1);
  auto model = minisgl::testing::load(small_qwen3(kVocab, c.head_dim), *device);
  return std::make_unique<Engine>(std::move(model), std::move(device), options);
}

// With preemption, recorded steps and, where all must be the same, steps of more rows than alone and shared pages.
EngineConfig options_together(const Case& c) {
  EngineConfig options = small_device_options(true);
  options.num_pages = 33;  // one more than the longest request takes
  if (c.exact) options.max_batch_tokens = 300;
  return options;
}
EngineConfig options_alone(const Case& c) {
  EngineConfig options = options_together(c);
  if (!c.exact) return options;
  options.max_batch_tokens = 40;
  options.cuda_graphs = options.prefix_cache = options.overlap = false;
  return options;
}

class Session {
 public:
  Session(const Case& c, const EngineConfig& options) : engine_(make_engine(c, options)) {
    engine_->start();
    if (!library_path().empty()) engine_->open_grammars(library_path(), letters(kVocab));
  }
  Engine& engine() { return *engine_; }
  const Outcomes& answers() const { return answers_; }

  // Waits for outputs; `after` is called for each.
  template <typename After>
  void collect(const After& after) {
    pollfd event{.fd = engine_->event_fd(), .events = POLLIN, .revents = 0};
    ASSERT_EQ(poll(&event, 1, 60000), 1) << "the engine says nothing";
    for (const RequestOutput& output : engine_->take_outputs()) {
      Outcome& answer = answers_[output.id];
      ASSERT_NE(output.finish, FinishReason::error) << output.error;
      ASSERT_EQ(answer.finish, FinishReason::none) << "request " << output.id << " goes on after its end";
      answer.tokens.insert(answer.tokens.end(), output.tokens.begin(), output.tokens.end());
      answer.finish = output.finish;
      num_finished_ += output.finish != FinishReason::none;
      after(output);
    }
  }
  std::size_t num_finished() const { return num_finished_; }

  void expect_all_pages_free() {
    engine_->stop();
    EXPECT_EQ(engine_->stats().pages_free, engine_->stats().pages_total);
  }

 private:
  std::unique_ptr<Engine> engine_;
  Outcomes answers_;
  std::size_t num_finished_ = 0;
};

std::vector<float> distribution_of(const TokenOutput& token) {
  std::vector<float> logprobs(kVocab, -INFINITY);
  for (const TokenLogprob& entry : token.top) logprobs[static_cast<std::size_t>(entry.token)] = entry.logprob;
  return logprobs;
}

// What may not be drawn after `tokens`.
std::vector<std::int32_t> banned_after(const Request& request, std::span<const TokenOutput> tokens) {
  std::vector<std::int32_t> banned;
  if (std::ssize(tokens) < request.min_tokens) banned = request.stop_token_ids;
  for (const std::vector<std::int32_t>& word : request.sampling.bad_words) {
    const std::span before(word.data(), word.size() - 1);
    if (before.size() > tokens.size()) continue;
    if (std::ranges::equal(before, tokens.last(before.size()), {}, {}, &TokenOutput::token)) {
      banned.push_back(word.back());
    }
  }
  const std::vector<std::int32_t>& allowed = request.sampling.allowed_token_ids;
  for (std::int32_t token = 0; token < kVocab && !allowed.empty(); ++token) {
    if (std::ranges::find(allowed, token) == allowed.end()) banned.push_back(token);
  }
  for (std::int32_t token = 0; token < kVocab && !request.grammar.empty(); ++token) {
    if (!is_allowed(token, tokens.size())) banned.push_back(token);
  }
  return banned;
}

// Whether the request's parameters draw token `index` of `tokens`, up to the rounding of the distribution.
void expect_drawn(const Request& request, std::span<const TokenOutput> tokens, std::size_t index,
                  const TokenCounts& counts) {
  const TokenOutput& token = tokens[index];
  ASSERT_EQ(token.top.size(), static_cast<std::size_t>(kVocab));
  const std::vector<std::int32_t> banned = banned_after(request, tokens.first(index));
  const auto logits = reference::adjusted_logits(distribution_of(token), request.sampling, counts, banned);
  if (std::ranges::max(logits) == -INFINITY) return;  // nothing is left
  const auto place = static_cast<std::size_t>(token.token);
  if (request.sampling.temperature == 0.0f) {
    ASSERT_GE(logits[place], *std::ranges::max_element(logits) - 1e-4) << "request " << request.id << ", " << index;
    return;
  }
  const auto probability = reference::distribution(logits, request.sampling);
  const double uniform = philox_uniform(request.sampling.seed, index);
  double below = 0;
  for (std::size_t i = 0; i < place; ++i) below += probability[i];
  ASSERT_GT(probability[place], 0.0) << "request " << request.id << ", " << index;
  ASSERT_GE(uniform, below - 1e-4) << "request " << request.id << ", " << index;
  ASSERT_LE(uniform, below + probability[place] + 1e-4) << "request " << request.id << ", " << index;
}

// The answer is what the request asked for, and nothing follows what ends it.
void expect_sound(const Request& request, const Outcome& answer) {
  TokenCounts counts{.in_prompt = {}, .in_output = std::vector<std::uint32_t>(kVocab)};
  for (std::size_t i = 0; i < answer.tokens.size(); ++i) {
    ASSERT_NO_FATAL_FAILURE(expect_drawn(request, answer.tokens, i, counts));
    const std::int32_t token = answer.tokens[i].token;
    ++counts.in_output[static_cast<std::size_t>(token)];
    const bool stops = std::ranges::find(request.stop_token_ids, token) != request.stop_token_ids.end();
    ASSERT_TRUE(!stops || (i + 1 == answer.tokens.size() && answer.finish == FinishReason::stop)) << request.id;
  }
  const auto count = static_cast<std::int64_t>(answer.tokens.size());
  ASSERT_LE(count, request.max_tokens);
  ASSERT_TRUE(answer.finish != FinishReason::length || count == request.max_tokens);
  ASSERT_TRUE(answer.finish != FinishReason::stop || count > request.min_tokens);
}

// How far apart the distributions are that two runs drew from, as long as the tokens before were the same. Since every
// token is the one that its distribution and seed give (expect_sound), the first difference of two runs lies on a
// border that this distance moved.
struct Distance {
  double largest = 0, sum = 0;  // total variation
  std::int64_t num_tokens = 0;

  void add(const TokenOutput& a, const TokenOutput& b) {
    const auto p = distribution_of(a), q = distribution_of(b);
    double distance = 0;
    for (std::size_t i = 0; i < p.size(); ++i) distance += std::abs(std::exp(p[i]) - std::exp(q[i])) / 2;
    largest = std::max(largest, distance);
    sum += distance;
    ++num_tokens;
  }
};

// Whether the request got the same tokens; the end must be the same then.
bool same_tokens(const Outcome& got, const Outcome& alone, Distance& distance) {
  const std::size_t length = std::min(got.tokens.size(), alone.tokens.size());
  for (std::size_t i = 0; i < length; ++i) {
    distance.add(got.tokens[i], alone.tokens[i]);
    if (got.tokens[i].token != alone.tokens[i].token) return false;
  }
  if (got.finish != FinishReason::abort) {
    EXPECT_EQ(got.finish, alone.finish);
    EXPECT_EQ(got.tokens.size(), alone.tokens.size());
  }
  return true;
}

class DeviceEngineRandom : public ::testing::TestWithParam<Case> {};

TEST_P(DeviceEngineRandom, EveryRequestGetsWhatItGetsAlone) {
  const Case& c = GetParam();
  MINISGL_SKIP_WITHOUT(c.kind);
  if (c.exact && c.kind == DeviceKind::cuda) {
    try {
      make_cuda_device(0, 1, nullptr, "", true);
    } catch (const InputError& error) {
      GTEST_SKIP() << error.what();
    }
  }
  const std::vector<Request> requests = random_requests(c.kind == DeviceKind::cuda && !c.exact ? 2000 : 400);

  Session together(c, options_together(c));
  std::mt19937 random(3);
  std::map<std::uint64_t, std::size_t> abort_after;  // tokens
  for (const Request& request : requests) {
    if (random() % 8 == 0) abort_after[request.id] = random() % 20;
    together.engine().submit(request);
    if (random() % 10 == 0) together.engine().abort(request.id);  // wherever it is
  }
  while (together.num_finished() < requests.size()) {
    together.collect([&](const RequestOutput& output) {
      const auto place = abort_after.find(output.id);
      if (place == abort_after.end()) return;
      if (together.answers().at(output.id).tokens.size() >= place->second) together.engine().abort(output.id);
    });
    ASSERT_FALSE(HasFatalFailure());
  }
  together.expect_all_pages_free();

  Session alone(c, options_alone(c));
  for (const Request& request : requests) {
    alone.engine().submit(request);
    const std::size_t before = alone.num_finished();
    while (alone.num_finished() == before && !HasFatalFailure()) alone.collect([](const RequestOutput&) {});
  }
  alone.expect_all_pages_free();

  std::map<FinishReason, int> ends;
  int whole = 0;
  Distance distance;
  for (const Request& request : requests) {
    const Outcome& got = together.answers().at(request.id);
    ++ends[got.finish];
    ASSERT_NO_FATAL_FAILURE(expect_sound(request, got));
    ASSERT_NO_FATAL_FAILURE(expect_sound(request, alone.answers().at(request.id)));
    whole += same_tokens(got, alone.answers().at(request.id), distance);
  }
  const EngineStats stats = together.engine().stats();
  const double mean = distance.sum / static_cast<double>(distance.num_tokens);
  std::printf("%d stopped, %d at their length, %d aborted, %llu preemptions; %d of %zu as alone to the last token\n",
              ends[FinishReason::stop], ends[FinishReason::length], ends[FinishReason::abort],
              static_cast<unsigned long long>(stats.num_preemptions), whole, requests.size());
  std::printf("distributions of %lld tokens are %.4f apart in the mean, %.4f at most\n",
              static_cast<long long>(distance.num_tokens), mean, distance.largest);
  EXPECT_LE(mean, c.exact ? 0.0 : 0.05);
  EXPECT_LE(distance.largest, c.exact ? 0.0 : 0.3);
  for (const FinishReason end : {FinishReason::stop, FinishReason::length, FinishReason::abort}) {
    EXPECT_GT(ends[end], 30);
  }
  EXPECT_GT(stats.num_preemptions, 5u);
  EXPECT_GE(whole, c.exact ? std::ssize(requests) : std::ssize(requests) / 2 + 1);
}

INSTANTIATE_TEST_SUITE_P(All, DeviceEngineRandom,
                         ::testing::Values(Case{DeviceKind::cpu, false, 16}, Case{DeviceKind::cpu, true, 16},
                                           Case{DeviceKind::cuda, false, 16}, Case{DeviceKind::cuda, true, 16},
                                           Case{DeviceKind::cuda, true, 128}),
                         [](const auto& info) {
                           return device_label(info.param.kind) + (info.param.exact ? "Exact" : "") +
                                  std::to_string(info.param.head_dim);
                         });

}  // namespace
}  // namespace minisgl::testing_support
