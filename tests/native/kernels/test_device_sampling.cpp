// Sampling on each device against the CPU's sampler and its reference: the same token from the same seed, unless the
// draw falls on a border that rounding moves.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "kernels/cpu/logprob.h"
#include "kernels/devices.h"
#include "kernels/philox.h"
#include "kernels/random_floats.h"
#include "kernels/sampling_reference.h"

namespace minisgl {
namespace {

using testing_support::device_label;
using testing_support::device_of;
using testing_support::DeviceKind;
using testing_support::DeviceMatrix;

class DeviceSampling : public testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override { MINISGL_SKIP_WITHOUT(GetParam()); }
  Device& device() const { return *device_of(GetParam()); }

  // One step whose only purpose is its logits.
  std::vector<TokenOutput> run(const std::vector<float>& logits, std::int64_t vocab,
                               const std::vector<LogitQuery>& queries) const {
    const auto count = queries.size();
    const std::vector<std::int32_t> zeros(count, 0), pages{0};
    std::vector<std::int32_t> rows(count);
    std::vector<ops::SequenceRows> sequences;
    for (std::size_t i = 0; i < count; ++i) {
      rows[i] = static_cast<std::int32_t>(i);
      sequences.push_back({rows[i], 1, 0, pages.data()});
    }
    const DeviceMatrix matrix(device(), DType::f32, std::ssize(queries), vocab, logits);
    device().begin_step({zeros, zeros, sequences, rows, 16}, queries);
    device().sample(matrix.view());
    return device().take_outputs().tokens;
  }
};

INSTANTIATE_TEST_SUITE_P(All, DeviceSampling, testing::Values(DeviceKind::cpu, DeviceKind::cuda),
                         [](const auto& info) { return device_label(info.param); });

std::vector<SamplingParams> many_params() {
  return {{.temperature = 0.0f},
          {.temperature = 1.0f},
          {.temperature = 0.3f},
          {.temperature = 2.0f, .top_k = 1},
          {.temperature = 1.0f, .top_k = 40},
          {.temperature = 0.8f, .top_p = 0.9f},
          {.temperature = 1.5f, .top_k = 200, .top_p = 0.5f},
          {.temperature = 1.0f, .min_p = 0.1f},
          {.temperature = 1.0f, .top_k = 50, .top_p = 0.95f, .min_p = 0.02f},
          {.temperature = 1.0f, .top_p = 1e-6f},
          {.temperature = 3.0f, .top_k = 5000, .top_p = 0.97f},  // many survive
          {.temperature = 2.0f, .top_k = 3000},
          {.temperature = 0.05f, .top_k = 20, .top_p = 0.8f},
          {.temperature = 3.0f, .top_p = 0.999f, .min_p = 1e-4f}};
}

// Whether the walk over `probability` by id reaches `uniform` within `token`, give or take rounding.
bool is_drawn(const std::vector<double>& probability, std::int32_t token, double uniform) {
  double below = 0;
  for (std::int32_t i = 0; i < token; ++i) below += probability[i];
  return probability[token] > 0 && uniform >= below - 1e-5 && uniform <= below + probability[token] + 1e-5;
}

TEST_P(DeviceSampling, DrawsWhatTheSeedSays) {
  for (const std::int64_t vocab : {1, 31, 1000, 49152, 151936}) {
    const auto params = many_params();
    std::vector<SamplingParams> seeded;
    for (std::size_t i = 0; i < params.size(); ++i) {
      seeded.push_back(params[i]);
      seeded.back().seed = 1000 + i;
    }
    const auto logits = random_floats(std::ssize(params) * vocab, static_cast<int>(vocab), 3.0f);
    for (std::uint64_t position = 0; position < 3; ++position) {
      std::vector<LogitQuery> queries;
      for (const SamplingParams& p : seeded) queries.push_back({.params = &p, .position = position});
      const auto outputs = run(logits, vocab, queries);
      for (std::size_t i = 0; i < seeded.size(); ++i) {
        const std::span row(&logits[i * vocab], static_cast<std::size_t>(vocab));
        const std::int32_t token = outputs[i].token;
        ASSERT_TRUE(token >= 0 && token < vocab) << token;
        if (seeded[i].temperature == 0.0f) {
          EXPECT_EQ(token, std::ranges::max_element(row) - row.begin());
          continue;
        }
        const auto adjusted = reference::adjusted_logits(row, seeded[i], {}, {});
        EXPECT_TRUE(
            is_drawn(reference::distribution(adjusted, seeded[i]), token, philox_uniform(seeded[i].seed, position)))
            << "vocabulary " << vocab << ", parameters " << i << ", token " << token;
      }
    }
  }
}

TEST_P(DeviceSampling, TiesGoToTheLowerId) {
  const std::int64_t vocab = 3000;
  std::vector<float> logits(vocab, 1.0f);
  logits[7] = logits[2000] = logits[2500] = 5.0f;
  const SamplingParams greedy{.temperature = 0.0f}, two{.temperature = 100.0f, .top_k = 2, .seed = 5};
  EXPECT_EQ(run(logits, vocab, {{.params = &greedy}})[0].token, 7);
  for (std::uint64_t position = 0; position < 20; ++position) {
    const std::int32_t token = run(logits, vocab, {{.params = &two, .position = position}})[0].token;
    EXPECT_TRUE(token == 7 || token == 2000) << token;
  }
}

TEST_P(DeviceSampling, FiltersAmongManyTies) {
  const std::int64_t vocab = 20000;
  const std::vector<float> logits(vocab, -3.0f);
  const SamplingParams few{.temperature = 1.0f, .top_k = 5000, .seed = 1},
      fewer{.temperature = 1.0f, .top_k = 5000, .top_p = 0.5f, .seed = 2}, share{.temperature = 1.0f, .top_p = 0.1f};
  for (std::uint64_t position = 0; position < 10; ++position) {
    for (const auto& [params, survivors] : {std::pair{&few, 5000}, {&fewer, 2500}, {&share, 2000}}) {
      const std::int32_t token = run(logits, vocab, {{.params = params, .position = position}})[0].token;
      const double expected = philox_uniform(params->seed, position) * survivors;
      EXPECT_NEAR(token, std::floor(expected), 1.0) << survivors;
    }
  }
}

TEST_P(DeviceSampling, RowsWithoutNumbersAndWithInfinities) {
  const std::int64_t vocab = 500;
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const SamplingParams params{.temperature = 1.0f, .seed = 3};
  const std::vector<std::int32_t> banned{0, 1};
  EXPECT_EQ(
      run(std::vector<float>(vocab, nan), vocab, {{.params = &params, .processors = {.banned = banned}}})[0].token, 2);
  EXPECT_EQ(run(std::vector<float>(vocab, -infinity), vocab, {{.params = &params}})[0].token, 0);
  std::vector<float> some(vocab, nan);
  some[123] = -1e30f;
  EXPECT_EQ(run(some, vocab, {{.params = &params}})[0].token, 123);
  std::vector<float> infinite(vocab, 1e30f);
  infinite[40] = infinite[400] = infinity;
  const std::int32_t token = run(infinite, vocab, {{.params = &params}})[0].token;
  EXPECT_TRUE(token == 40 || token == 400) << token;
}

TEST_P(DeviceSampling, BiasBansAndPenalties) {
  const std::int64_t vocab = 2000;
  const auto logits = random_floats(vocab, 50, 2.0f);
  const SamplingParams params{.temperature = 0.0f,
                              .repetition_penalty = 1.7f,
                              .presence_penalty = 0.4f,
                              .frequency_penalty = 0.3f,
                              .logit_bias = {{5, 4.0f}, {9, 6.5f}, {5, 3.0f}}};
  const std::vector<std::int32_t> prompt{9, 11, 5, 9}, resumed{40, 9, 40}, banned{3};
  const auto seen = device().make_seen_tokens(vocab, true);
  seen->add_prompt(prompt);
  seen->add_output(resumed);
  TokenCounts counts{.in_prompt = std::vector<std::uint8_t>(vocab), .in_output = std::vector<std::uint32_t>(vocab)};
  for (const std::int32_t token : prompt) counts.in_prompt[token] = 1;
  for (const std::int32_t token : resumed) ++counts.in_output[token];
  for (int step = 0; step < 30; ++step) {
    const auto expected = reference::adjusted_logits(logits, params, counts, banned);
    const auto best = static_cast<std::int32_t>(std::ranges::max_element(expected) - expected.begin());
    const LogitProcessors processors{
        .bias = params.logit_bias, .penalties = {1.7f, 0.4f, 0.3f, seen.get()}, .banned = banned};
    const auto output = run(logits, vocab, {{.params = &params, .processors = processors}});
    ASSERT_NEAR(expected[output[0].token], expected[best], 1e-5) << "step " << step;
    ++counts.in_output[output[0].token];
  }
}

// A mask with these tokens.
std::vector<std::uint32_t> mask_of(std::int64_t vocab, const std::vector<std::int32_t>& allowed) {
  std::vector<std::uint32_t> mask(static_cast<std::size_t>(mask_words(vocab)), 0);
  for (const std::int32_t token : allowed) mask[static_cast<std::size_t>(token) / 32] |= 1u << (token % 32);
  return mask;
}

// Random chains of processors, each with some of the parts, several in one step: the token is one that the reference's
// distribution of the adjusted row draws.
TEST_P(DeviceSampling, AnyChainOfProcessors) {
  std::mt19937 random(20);
  const auto chance = [&](int in) { return random() % static_cast<unsigned>(in) == 0; };
  for (const std::int64_t vocab : {1, 31, 32, 33, 700, 4097, 49152}) {
    constexpr std::size_t kRows = 12;
    const auto any_token = [&] { return static_cast<std::int32_t>(random() % static_cast<unsigned>(vocab)); };
    const auto logits = random_floats(static_cast<std::int64_t>(kRows) * vocab, static_cast<int>(vocab), 3.0f);
    std::vector<SamplingParams> params(kRows);
    std::vector<TokenCounts> counts(kRows);
    std::vector<std::unique_ptr<SeenTokens>> seen(kRows);
    std::vector<std::vector<std::int32_t>> banned(kRows);
    std::vector<std::vector<std::uint32_t>> masks(kRows);
    std::vector<LogitQuery> queries(kRows);
    for (std::size_t i = 0; i < kRows; ++i) {
      params[i] = many_params()[random() % many_params().size()];
      params[i].seed = random();
      counts[i] = {std::vector<std::uint8_t>(vocab), std::vector<std::uint32_t>(vocab)};
      queries[i] = {.params = &params[i], .position = random() % 100};
      LogitProcessors& processors = queries[i].processors;
      if (chance(2)) {
        for (int n = 0; n < 20; ++n) params[i].logit_bias.emplace_back(any_token(), 0.5f * static_cast<float>(n % 7));
        processors.bias = params[i].logit_bias;
      }
      if (chance(2)) {
        params[i].repetition_penalty = 1.3f, params[i].presence_penalty = 0.5f, params[i].frequency_penalty = 0.25f;
        seen[i] = device().make_seen_tokens(vocab, true);
        std::vector<std::int32_t> prompt, output;
        for (int n = 0; n < 50; ++n) prompt.push_back(any_token()), output.push_back(any_token());
        seen[i]->add_prompt(prompt), seen[i]->add_output(output);
        for (const std::int32_t token : prompt) counts[i].in_prompt[token] = 1;
        for (const std::int32_t token : output) ++counts[i].in_output[token];
        processors.penalties = {1.3f, 0.5f, 0.25f, seen[i].get()};
      }
      const std::int32_t spared = any_token();  // so that something is left
      if (chance(2)) {
        for (int n = 0; n < 10; ++n) banned[i].push_back(any_token());
        std::erase(banned[i], spared);
        processors.banned = banned[i];
      }
      if (chance(2)) {
        std::vector<std::int32_t> allowed{spared};
        const int share = chance(2) ? 2 : 50;
        for (std::int32_t token = 0; token < vocab; ++token)
          if (chance(share)) allowed.push_back(token);
        masks[i] = mask_of(vocab, allowed);
        if (vocab % 32 != 0) masks[i].back() |= ~std::uint32_t{0} << (vocab % 32);  // what is past the vocabulary
        processors.mask = masks[i];
      }
    }
    const auto outputs = run(logits, vocab, queries);
    for (std::size_t i = 0; i < kRows; ++i) {
      const std::span row(&logits[i * vocab], static_cast<std::size_t>(vocab));
      const auto adjusted = reference::adjusted_logits(row, params[i], counts[i], banned[i], masks[i]);
      const std::int32_t token = outputs[i].token;
      ASSERT_TRUE(token >= 0 && token < vocab) << token;
      if (params[i].temperature == 0.0f) {
        EXPECT_NEAR(adjusted[token], *std::ranges::max_element(adjusted), 1e-5) << "vocabulary " << vocab;
        continue;
      }
      EXPECT_TRUE(is_drawn(reference::distribution(adjusted, params[i]), token,
                           philox_uniform(params[i].seed, queries[i].position)))
          << "vocabulary " << vocab << ", row " << i << ", token " << token;
    }
  }
}

TEST_P(DeviceSampling, MasksAndBansThatLeaveNothing) {
  const std::int64_t vocab = 100;
  const std::vector<float> logits(vocab, 1.0f);
  const SamplingParams params{.temperature = 1.0f};
  const std::vector<std::int32_t> banned{40};
  const auto one = mask_of(vocab, {40}), two = mask_of(vocab, {40, 90}), none = mask_of(vocab, {});
  EXPECT_EQ(run(logits, vocab, {{.params = &params, .processors = {.banned = banned, .mask = two}}})[0].token, 90);
  // A mask outweighs a ban: what a grammar needs is drawn.
  EXPECT_EQ(run(logits, vocab, {{.params = &params, .processors = {.banned = banned, .mask = one}}})[0].token, 40);
  EXPECT_EQ(run(logits, vocab, {{.params = &params, .processors = {.mask = none}}})[0].token, 0);
  std::vector<float> only = logits;  // allowed, and impossible
  only[40] = only[90] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(run(only, vocab, {{.params = &params, .processors = {.mask = two}}})[0].token, 40);
}

// A device of its own with room for `most` sequences in a step.
std::unique_ptr<Device> reserved_device(DeviceKind kind, std::int64_t most, std::int64_t vocab) {
  auto device = kind == DeviceKind::cpu ? make_cpu_device(1) : make_cuda_device(0, 1);
  device->reserve({.rows = 64,
                   .sequences = most,
                   .penalized = most,
                   .logits = most,
                   .hidden = 0,
                   .positions = 64,
                   .pages = 64,
                   .vocab_size = vocab});
  return device;
}

// Steps are recorded without masks; when they are replayed, some sequences have one.
TEST_P(DeviceSampling, MasksInAReplayedStep) {
  const std::int64_t vocab = 5000, most = 4;
  const auto device = reserved_device(GetParam(), most, vocab);
  const auto logits = random_floats(most * vocab, 70, 3.0f);
  const DeviceMatrix matrix(*device, DType::f32, most, vocab, logits);
  const std::vector<std::int32_t> zeros(most, 0), rows{0, 1, 2, 3}, pages{0};
  std::vector<ops::SequenceRows> sequences;
  for (const std::int32_t row : rows) sequences.push_back({row, 1, 0, pages.data()});
  const SamplingParams greedy{.temperature = 0.0f};
  const std::vector<LogitQuery> plain(most, LogitQuery{.params = &greedy});
  std::int64_t rows_at_hand = most;
  const auto body = [&] {
    Tensor all = matrix.view();
    all.rows = device->records_steps() ? most : rows_at_hand;
    device->sample(all);
  };
  device->record_step({zeros, zeros, sequences, rows, 16}, plain, [] {}, body);
  for (int step = 0; step < 6; ++step) {
    rows_at_hand = most - step % 2;  // fewer are filled up
    const auto count = static_cast<std::size_t>(rows_at_hand);
    std::vector<std::vector<std::uint32_t>> masks(count);
    std::vector<LogitQuery> queries(count, LogitQuery{.params = &greedy});
    std::vector<std::int32_t> expected(count);
    for (std::size_t i = 0; i < count; ++i) {
      const std::span row(&logits[i * vocab], static_cast<std::size_t>(vocab));
      expected[i] = static_cast<std::int32_t>(std::ranges::max_element(row) - row.begin());
      if ((i + static_cast<std::size_t>(step)) % 2 == 0) continue;
      expected[i] = static_cast<std::int32_t>(17 * i + static_cast<std::size_t>(step));
      masks[i] = mask_of(vocab, {expected[i]});
      queries[i].processors.mask = masks[i];
    }
    const std::span tokens(zeros.data(), count), logit_rows(rows.data(), count);
    device->upload(std::as_bytes(std::span(logits)), matrix.data());  // sampling may have changed them
    device->begin_step({tokens, tokens, {sequences.data(), count}, logit_rows, 16}, queries);
    device->run_step(body);
    const auto outputs = device->take_outputs().tokens;
    ASSERT_EQ(outputs.size(), count);
    for (std::size_t i = 0; i < count; ++i)
      EXPECT_EQ(outputs[i].token, expected[i]) << "step " << step << ", row " << i;
  }
}

// Rows of a sequence are as many sequences of a recorded step, where those have a draw that something is wanted of.
TEST_P(DeviceSampling, SeveralRowsOfASequenceInAReplayedStep) {
  const std::int64_t vocab = 5000, most = 4;
  const auto device = reserved_device(GetParam(), most, vocab);
  if (!device->records_steps()) GTEST_SKIP() << "nothing is recorded";
  const auto logits = random_floats(most * vocab, 74, 3.0f);
  const DeviceMatrix matrix(*device, DType::f32, most, vocab, logits);
  const std::vector<std::int32_t> zeros(most, 0), rows{0, 1, 2, 3}, pages{0};
  std::vector<ops::SequenceRows> sequences;
  for (const std::int32_t row : rows) sequences.push_back({row, 1, 0, pages.data()});
  const SamplingParams greedy{.temperature = 0.0f};
  int num_bodies = 0;
  const auto body = [&] {
    ++num_bodies;
    device->sample(matrix.view());
  };
  device->record_step(
      {zeros, zeros, sequences, rows, 16}, std::vector<LogitQuery>(most, {.params = &greedy}), [] {}, body);
  num_bodies = 0;
  const std::vector<std::int32_t> positions{0, 1, 2};
  const std::vector<std::vector<ops::SequenceRows>> forms{
      {{0, 3, 0, pages.data()}}, {{0, 2, 0, pages.data()}, {2, 1, 2, pages.data()}}, {{0, 1, 0, pages.data()}}};
  const std::vector<std::vector<std::int32_t>> wanted{{2}, {1, 2}, {0}};
  std::size_t num_before = 0;
  for (std::size_t form = 0; form < forms.size(); ++form) {
    const auto num_rows = static_cast<std::size_t>(wanted[form].back()) + 1;
    std::vector<std::int32_t> tokens(num_rows, 0);
    tokens[0] = -static_cast<std::int32_t>(num_before);  // what the last query drew
    num_before = wanted[form].size();
    device->upload(std::as_bytes(std::span(logits)), matrix.data());  // sampling may have changed them
    const std::vector<LogitQuery> queries(num_before, {.params = &greedy});
    device->begin_step({tokens, std::span(positions).first(num_rows), forms[form], wanted[form], 16}, queries);
    device->run_step(body);
    const auto outputs = device->take_outputs().tokens;
    ASSERT_EQ(outputs.size(), num_before);
    for (std::size_t i = 0; i < num_before; ++i) {
      const std::span row(&logits[static_cast<std::size_t>(wanted[form][i]) * vocab], static_cast<std::size_t>(vocab));
      EXPECT_EQ(outputs[i].token, std::ranges::max_element(row) - row.begin()) << "form " << form << ", query " << i;
    }
  }
  EXPECT_EQ(num_bodies, 0);
}

// Steps in two halves, recorded and not, among whole ones: the words come behind the forward pass, and a draw without
// any is none, which the counts of the penalties don't have either.
TEST_P(DeviceSampling, MasksThatComeLate) {
  const std::int64_t vocab = 5000, most = 4;
  const auto device = reserved_device(GetParam(), most, vocab);
  if (!device->runs_ahead()) GTEST_SKIP() << "no step awaits masks";
  const auto logits = random_floats(most * vocab, 72, 3.0f);
  const DeviceMatrix matrix(*device, DType::f32, most, vocab, logits);
  const std::vector<std::int32_t> zeros(most, 0), rows{0, 1, 2, 3}, pages{0};
  std::vector<ops::SequenceRows> sequences;
  for (const std::int32_t row : rows) sequences.push_back({row, 1, 0, pages.data()});
  const SamplingParams greedy{.temperature = 0.0f};
  const std::vector<std::uint32_t> stale = mask_of(vocab, {4999});
  const auto seen = device->make_seen_tokens(vocab, false);
  std::int64_t rows_at_hand = most;
  bool is_recorded = false;
  int num_forward = 0;
  const auto forward = [&] {
    ++num_forward;
    device->upload(std::as_bytes(std::span(logits)), matrix.data());  // sampling may have changed them
  };
  const auto sampling = [&] {
    Tensor all = matrix.view();
    all.rows = is_recorded ? most : rows_at_hand;
    device->sample(all);
  };
  for (int step = 0; step < 16; ++step) {
    if (step == 8) {
      is_recorded = true;
      device->record_step(
          {zeros, zeros, sequences, rows, 16}, std::vector<LogitQuery>(most, {.params = &greedy}), [] {}, sampling);
    }
    rows_at_hand = most - step % 3 % 2;  // fewer are filled up
    const bool is_late = step % 4 != 3;
    const auto count = static_cast<std::size_t>(rows_at_hand);
    std::vector<LogitQuery> queries(count, LogitQuery{.params = &greedy});
    std::vector<std::int32_t> expected(count);
    std::vector<std::vector<std::uint32_t>> words(count);
    std::vector<LateMask> masks;
    for (std::size_t i = 0; i < count; ++i) {
      expected[i] = static_cast<std::int32_t>(17 * i + static_cast<std::size_t>(step));
      words[i] = mask_of(vocab, {expected[i]});
      queries[i].processors.mask = words[i];
      if (!is_late || i == 0) continue;  // it is known when the step begins
      const bool is_withdrawn = (i + static_cast<std::size_t>(step)) % 3 == 0;
      queries[i].processors.mask = stale;
      queries[i].awaits_mask = true;
      if (is_withdrawn) queries[i].processors.penalties = {.frequency = 1.0f, .seen = seen.get()};
      masks.push_back({static_cast<std::int32_t>(i), is_withdrawn ? TokenMask() : TokenMask(words[i])});
      if (is_withdrawn) expected[i] = 0;
    }
    const std::span tokens(zeros.data(), count), logit_rows(rows.data(), count);
    if (is_recorded) forward();
    device->begin_step({tokens, tokens, {sequences.data(), count}, logit_rows, 16}, queries);
    num_forward = 0;
    if (is_late) {
      device->run_forward(forward);
      EXPECT_EQ(num_forward, is_recorded ? 0 : 1);
      device->run_sampling(masks, sampling);
    } else {
      if (!is_recorded) forward();
      device->run_step(sampling);
    }
    const auto outputs = device->take_outputs().tokens;
    ASSERT_EQ(outputs.size(), count);
    for (std::size_t i = 0; i < count; ++i)
      EXPECT_EQ(outputs[i].token, expected[i]) << "step " << step << ", row " << i;
  }
  rows_at_hand = most;
  std::vector<LogitQuery> queries(most, LogitQuery{.params = &greedy});
  const std::vector<TokenBias> likely[] = {{{0, 50.0f}}, {{4999, 50.0f}}};
  for (std::size_t i = 0; i < 2; ++i) {
    queries[i].processors = {.bias = likely[i], .penalties = {.frequency = 1000.0f, .seen = seen.get()}};
  }
  forward();
  device->begin_step({zeros, zeros, sequences, rows, 16}, queries);
  device->run_step(sampling);
  const auto outputs = device->take_outputs().tokens;
  EXPECT_EQ(outputs[0].token, 0);
  EXPECT_EQ(outputs[1].token, 4999);
}

// A step with more bans than were reserved for is not replayed; the next one is, as before.
TEST_P(DeviceSampling, AStepThatIsTooLargeForItsRecordingLeavesItValid) {
  const std::int64_t vocab = 5000, most = 2;
  const auto device = reserved_device(GetParam(), most, vocab);
  const auto logits = random_floats(most * vocab, 71, 3.0f);
  const DeviceMatrix matrix(*device, DType::f32, most, vocab, logits);
  const std::vector<std::int32_t> zeros(most, 0), rows{0, 1}, pages{0};
  const std::vector<ops::SequenceRows> sequences{{0, 1, 0, pages.data()}, {1, 1, 0, pages.data()}};
  const SamplingParams greedy{.temperature = 0.0f};
  int num_bodies = 0;
  const auto body = [&] {
    ++num_bodies;
    device->sample(matrix.view());
  };
  device->record_step(
      {zeros, zeros, sequences, rows, 16}, std::vector<LogitQuery>(2, {.params = &greedy}), [] {}, body);
  std::vector<std::int32_t> few{1, 2, 3}, all_but_one;
  for (std::int32_t i = 0; i < 60'000; ++i)
    if (i % vocab != 42) all_but_one.push_back(static_cast<std::int32_t>(i % vocab));
  for (int step = 0; step < 8; ++step) {
    const bool is_large = step % 4 == 1;  // in one slot; the next ones are in both
    const std::vector<std::int32_t>& banned = is_large ? all_but_one : few;
    num_bodies = 0;
    device->upload(std::as_bytes(std::span(logits)), matrix.data());  // sampling may have changed them
    const std::vector<LogitQuery> queries(2, {.params = &greedy, .processors = {.banned = banned}});
    device->begin_step({zeros, zeros, sequences, rows, 16}, queries);
    device->run_step(body);
    const auto outputs = device->take_outputs().tokens;
    EXPECT_EQ(num_bodies, is_large || !device->records_steps() ? 1 : 0) << "step " << step;
    for (std::size_t i = 0; i < 2; ++i) {
      std::vector<float> row(&logits[i * vocab], &logits[(i + 1) * vocab]);
      for (const std::int32_t token : banned) row[static_cast<std::size_t>(token)] = -1e30f;
      EXPECT_EQ(outputs[i].token, std::ranges::max_element(row) - row.begin()) << "step " << step << ", row " << i;
    }
  }
}

TEST_P(DeviceSampling, LogProbabilities) {
  const std::int64_t vocab = 49152;
  const auto logits = random_floats(2 * vocab, 60, 4.0f);
  const SamplingParams params{.temperature = 0.5f, .seed = 9, .logit_bias = {{77, 50.0f}}};
  const auto outputs = run(logits, vocab,
                           {{.num_top = 20, .params = &params, .processors = {.bias = params.logit_bias}},
                            {.target = 1234, .num_top = 0, .params = &params}});
  EXPECT_EQ(outputs[0].token, 77);
  EXPECT_EQ(outputs[1].token, 1234);
  for (std::size_t i = 0; i < 2; ++i) {
    std::vector<TokenLogprob> top;
    const std::span row(&logits[i * vocab], static_cast<std::size_t>(vocab));
    EXPECT_NEAR(outputs[i].logprob, token_logprob(row, outputs[i].token, i == 0 ? 20 : 0, top), 1e-5);
    ASSERT_EQ(outputs[i].top.size(), top.size());
    for (std::size_t k = 0; k < top.size(); ++k) {
      EXPECT_EQ(outputs[i].top[k].token, top[k].token);
      EXPECT_NEAR(outputs[i].top[k].logprob, top[k].logprob, 1e-5);
    }
  }
}

}  // namespace
}  // namespace minisgl
