// Requests with a grammar beside others: what they write is in their grammar and the same whatever happens around them,
// and the others notice nothing.
#include <pthread.h>

#include <cmath>
#include <mutex>
#include <regex>

#include "comm/plan_ends.h"
#include "engine/engine_fixture.h"
#include "engine/follower.h"
#include "engine/letters.h"

namespace minisgl::testing_support {
namespace {

using Pace = AsyncDevice::Pace;

constexpr const char* kPatterns[] = {"[a-c]{3,20}", "(ab|cz)*[0-9]{2,4}", "([0-9]{1,2}czaaz){1,4}", "x{30}"};

bool has_grammar(const Request& request) {
  return request.id % 2 == 0;
}
std::string pattern_of(const Request& request) {
  return kPatterns[request.id / 2 % std::size(kPatterns)];
}

// Every second one has a grammar; some of these allow a few tokens besides.
std::vector<Request> some_requests(std::uint64_t count) {
  std::vector<Request> requests = random_requests(count, 100, 17);
  for (Request& request : requests) {
    if (!has_grammar(request)) continue;
    request.grammar = "start: /" + pattern_of(request) + "/";
    request.sampling.allowed_token_ids.clear();
    request.stop_token_ids.clear();
    request.pooling = {};
    request.max_tokens = std::min<std::int64_t>(60, 100 - std::ssize(request.prompt));
  }
  return requests;
}

class EngineGrammar : public testing::Test {
 protected:
  void SetUp() override { MINISGL_NEEDS_LLGUIDANCE(); }

  static EngineConfig options(std::int64_t num_pages = 1000) {
    EngineConfig options = small_options();
    options.num_pages = num_pages;
    options.max_model_len = 100;
    options.max_running = 16;
    return options;
  }
  // Some tokens are forced.
  static void open(TestEngine& test) { test.engine.open_grammars(library_path(), letters(50, true)); }

  static void run_all(TestEngine& test, const std::vector<Request>& requests) {
    for (const Request& request : requests) test.engine.submit(request);
    test.engine.start();
    open(test);  // they waited
    test.collect_until_finished(requests.size());
    test.engine.stop();
    test.expect_idle();
  }

  // What each gets alone.
  static const std::map<std::uint64_t, TestEngine::Result>& alone(const std::vector<Request>& requests) {
    static std::map<std::uint64_t, TestEngine::Result> results;
    if (!results.empty()) return results;
    TestEngine test(options());
    test.engine.start();
    open(test);
    for (const Request& request : requests) results[request.id] = test.run(request);
    return results;
  }

  static void expect_all(const TestEngine& test, const std::vector<Request>& requests) {
    int num_stopped = 0;
    for (const Request& request : requests) {
      const TestEngine::Result& result = test.results.at(request.id);
      if (!has_grammar(request)) {
        ASSERT_NO_FATAL_FAILURE(expect_reference(result, request));
        continue;
      }
      const TestEngine::Result& expected = alone(requests).at(request.id);
      ASSERT_EQ(result.token_ids(), expected.token_ids()) << "request " << request.id;
      ASSERT_EQ(result.finish, expected.finish);
      if (result.finish != FinishReason::stop) continue;
      ++num_stopped;
      EXPECT_EQ(result.token_ids().back(), 3);
      const std::string text = text_of(result.token_ids());
      EXPECT_TRUE(std::regex_match(text, std::regex(pattern_of(request)))) << text;
    }
    EXPECT_GT(num_stopped, std::ssize(requests) / 4);
  }
};

TEST_F(EngineGrammar, WritesTheSameBesideOthers) {
  const std::vector<Request> requests = some_requests(80);
  TestEngine test(options());
  run_all(test, requests);
  expect_all(test, requests);
}

// Those with a grammar run ahead, too.
TEST_F(EngineGrammar, WritesTheSameOnADeviceThatRunsAhead) {
  const std::vector<Request> requests = some_requests(80);
  for (const Pace pace : {Pace::dawdling, Pace::at_once, Pace::when_waited_for}) {
    for (const std::int64_t num_pages : {1000, 27}) {
      auto device = std::make_unique<AsyncDevice>(pace);
      const AsyncDevice& observed = *device;
      TestEngine test(std::move(device), options(num_pages));
      run_all(test, requests);
      expect_all(test, requests);
      EXPECT_EQ(observed.most_in_flight(), 2);
      EXPECT_GT(observed.num_awaiting(), 100);  // what is forced awaits nothing
      if (num_pages == 27) {
        EXPECT_GT(test.engine.stats().num_preemptions, 0u);
      }
    }
  }
}

// Alone, so that nobody else has steps meanwhile.
TEST_F(EngineGrammar, RunsAheadToItsLastToken) {
  auto device = std::make_unique<AsyncDevice>(Pace::when_waited_for);
  const AsyncDevice& observed = *device;
  TestEngine test(std::move(device), options());
  test.engine.start();
  open(test);
  Request request = make_request(1, {5, 6, 7}, 20);
  request.grammar = "start: /[a-m]{60}/";
  EXPECT_EQ(test.run(request).finish, FinishReason::length);
  test.engine.stop();
  EXPECT_EQ(observed.most_in_flight(), 2);
  EXPECT_EQ(observed.num_awaiting(), 19);  // all but the first
  EXPECT_EQ(std::ssize(test.results[1].tokens), 20);
  EXPECT_EQ(static_cast<std::int64_t>(test.engine.stats().num_steps), 20 + observed.num_withdrawn());
}

// What a device computes, with every token known.
struct Computed {
  std::mutex mutex;
  std::vector<std::vector<std::int32_t>> tokens;  // by step

  std::unique_ptr<Model> model_on(AsyncDevice& device) {
    auto enqueue = [this, &device](FakeModel::Compute compute) {
      device.enqueue([this, compute = std::move(compute)](const StepBatch& batch) {
        {
          const std::lock_guard lock(mutex);
          tokens.emplace_back(batch.tokens.begin(), batch.tokens.end());
        }
        compute(batch);
      });
    };
    return std::make_unique<FakeModel>(fake_spec(), std::function<void(const StepBatch&)>(), enqueue, &device);
  }
};

// A rank that drew another token than rank 0 would compute it in the next step.
TEST_F(EngineGrammar, AllRanksDrawTheSame) {
  const std::vector<Request> requests = some_requests(80);
  const FileDescriptor memory = ring_memory(20'000);
  Computed first, second;
  auto device = std::make_unique<AsyncDevice>(Pace::dawdling);
  auto model = second.model_on(*device);
  const EngineConfig config = options(27);
  Follower follower(std::move(model), std::move(device), config, open_ring_receiver(memory.get(), 1, {.size = 2}));
  follower.start();
  PlanSenders senders;
  senders.push_back(open_ring_sender(memory.get(), {.size = 2}));
  device = std::make_unique<AsyncDevice>(Pace::dawdling);
  model = first.model_on(*device);
  TestEngine test(std::move(model), std::move(device), config, std::move(senders));
  run_all(test, requests);
  expect_all(test, requests);
  pollfd event{.fd = follower.event_fd(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(poll(&event, 1, 30'000), 1);
  EXPECT_EQ(follower.failure(), "");
  EXPECT_GT(first.tokens.size(), 100u);
  EXPECT_EQ(first.tokens, second.tokens);
}

TEST_F(EngineGrammar, WritesTheSameWhenPreempted) {
  const std::vector<Request> requests = some_requests(80);
  TestEngine test(options(27));
  run_all(test, requests);
  expect_all(test, requests);
  EXPECT_GT(test.engine.stats().num_preemptions, 0u);
}

// The same tokens as one by one, in fewer steps.
void expect_forced_tokens(TestEngine& test, std::uint64_t most_steps) {
  Request request = make_request(1, {5, 6, 7}, 60);
  request.grammar = "start: /[a-c][0-9]abzczxyzghi[0-9]/";
  std::vector<std::vector<std::int32_t>> answers;
  std::vector<std::uint64_t> steps;
  for (const bool has_logprobs : {false, true}) {
    request.id += 1;
    request.logprobs = has_logprobs ? 0 : -1;
    const std::uint64_t before = test.engine.stats().num_steps;
    const TestEngine::Result& result = test.run(request);
    EXPECT_EQ(result.finish, FinishReason::stop);
    answers.push_back(result.token_ids());
    steps.push_back(test.engine.stats().num_steps - before);
    if (!has_logprobs) continue;
    for (const TokenOutput& token : result.tokens) EXPECT_FALSE(std::isnan(token.logprob));
  }
  EXPECT_EQ(answers[0], answers[1]);
  EXPECT_EQ(answers[0].size(), 13u);  // a letter, a digit, a bz cz x yz g h i, a digit, the end
  EXPECT_GE(steps[1], 12u);           // none for the end
  EXPECT_LE(steps[0], most_steps);
}

TEST_F(EngineGrammar, ForcesSeveralTokensInAStep) {
  TestEngine test(options());
  test.engine.start();
  open(test);
  expect_forced_tokens(test, 4);
}

// A step that was begun for each drawn token doesn't draw what is forced behind it.
TEST_F(EngineGrammar, ForcesSeveralTokensInAStepOnADeviceThatRunsAhead) {
  for (const Pace pace : {Pace::dawdling, Pace::at_once, Pace::when_waited_for}) {
    TestEngine test(std::make_unique<AsyncDevice>(pace), options());
    test.engine.start();
    open(test);
    expect_forced_tokens(test, 6);
    test.engine.stop();
    test.expect_idle();
  }
}

TEST_F(EngineGrammar, ForcedTokensKeepToLimits) {
  TestEngine test(options());
  test.engine.start();
  open(test);
  for (const std::int64_t max_tokens : {1, 2, 3, 5}) {
    Request request = make_request(static_cast<std::uint64_t>(max_tokens), {5, 6, 7}, max_tokens);
    request.grammar = "start: /[a-c]xxxxxxxxxx/";
    const TestEngine::Result& result = test.run(request);
    EXPECT_EQ(result.finish, FinishReason::length);
    EXPECT_EQ(std::ssize(result.tokens), max_tokens);
  }
  Request request = make_request(10, {5, 6, 7}, 20);
  request.grammar = "start: /[a-c]xyghxxx/";
  request.stop_token_ids = {6};  // g
  EXPECT_EQ(text_of(test.run(request).token_ids()).substr(1), "xyg");
  EXPECT_EQ(test.results[10].finish, FinishReason::stop);
}

// Those that a model would take for a text may not be among the allowed ones.
TEST_F(EngineGrammar, AllowedTokensWriteWhatIsForced) {
  TestEngine test(options());
  test.engine.start();
  open(test);
  Request request = make_request(1, {5, 6, 7}, 60);
  request.grammar = "start: /[a-c]czez[0-9]/";
  EXPECT_EQ(test.run(request).token_ids().size(), 5u);  // a letter, cz, ez, a digit, the end
  for (int round = 0; round < 2; ++round) {
    request.id += 1;
    request.sampling.allowed_token_ids = {0, 2, 4, 25, 27};
    EXPECT_EQ(test.run(request).finish, FinishReason::stop);
    EXPECT_EQ(text_of(test.results[request.id].token_ids()).substr(1), "czez1");
  }
  request.id += 1;
  request.sampling.allowed_token_ids.clear();
  EXPECT_EQ(test.run(request).token_ids().size(), 5u);
}

TEST_F(EngineGrammar, GoesOnBehindWhatAnotherEngineWrote) {
  TestEngine test(options());
  test.engine.start();
  open(test);
  Request request = make_request(1, {5, 6, 7}, 60);
  request.grammar = "start: /([a-m]{4}[0-9]){4}/";
  const std::vector<std::int32_t> whole = test.run(request).token_ids();
  ASSERT_GT(whole.size(), 10u);
  for (const std::size_t done : {std::size_t{1}, whole.size() / 2, whole.size() - 1}) {
    request.id += 1;
    request.sampling.seed = 1001;
    request.prompt = {5, 6, 7};
    request.prompt.insert(request.prompt.end(), whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(done));
    request.num_resumed = static_cast<std::int64_t>(done);
    const TestEngine::Result& rest = test.run(request);
    EXPECT_EQ(rest.token_ids(), std::vector(whole.begin() + static_cast<std::ptrdiff_t>(done), whole.end()));
    EXPECT_EQ(rest.finish, FinishReason::stop);
  }
}

TEST_F(EngineGrammar, AFaultEndsItsRequestAlone) {
  TestEngine test(options());
  std::vector<Request> requests;
  for (const char* grammar : {"start: /[/", "start: /a{20}/", "start: /a{20}/", "start: e\ne: e e | \"a\" | e e e"}) {
    requests.push_back(make_request(requests.size() + 1, {4, 5}, 90));
    requests.back().grammar = grammar;
  }
  requests[1].sampling.allowed_token_ids = {7, 8};  // none of the grammar's
  for (std::uint64_t id = 5; id < 15; ++id) requests.push_back(make_request(id, {4, 5}, 90));
  run_all(test, requests);
  for (const int index : {1, 2}) {
    EXPECT_EQ(test.results[index].finish, FinishReason::error);
    EXPECT_EQ(test.results[index].last.error_code, ErrorCode::invalid_request);
  }
  EXPECT_THAT(test.results[1].last.error, testing::HasSubstr("the grammar can't be read"));
  EXPECT_THAT(test.results[2].last.error, testing::HasSubstr("allowed_token_ids"));
  EXPECT_EQ(test.results[3].finish, FinishReason::stop);
  for (std::uint64_t id = 5; id < 15; ++id)
    ASSERT_NO_FATAL_FAILURE(expect_reference(test.results[id], requests[id - 1]));
}

// So many readings of a text that the mask of its fourth letter takes a second.
std::string ambiguous_grammar(int num_rules = 12) {
  std::string grammar = "start: e0\n";
  for (int rule = 0; rule < num_rules; ++rule) {
    grammar += concat("e", rule, ": ");
    for (int i = 0; i < num_rules; ++i)
      grammar += concat("e", (rule + i) % num_rules, " e", (rule * i + 1) % num_rules, " | ");
    for (char letter = 'a'; letter < 'z'; ++letter) grammar += concat('"', letter, "\" | ");
    grammar += "\"z\"\n";
  }
  return grammar;
}

TEST_F(EngineGrammar, OneWhoseMaskTakesTooLongEndsItsRequestAlone) {
  EngineConfig config = options();
  config.mask_limit_ms = 50;
  TestEngine test(config);
  test.engine.start();
  open(test);
  Request slow = make_request(1, {4, 5}, 90);
  slow.grammar = ambiguous_grammar();
  slow.ignore_eos = true;
  const auto expect_error = [&] {
    EXPECT_EQ(test.results[1].finish, FinishReason::error);
    EXPECT_EQ(test.results[1].last.error_code, ErrorCode::invalid_request);
    EXPECT_EQ(test.results[1].last.error, "the grammar takes more than 50 ms for a token, the most that it may");
  };
  test.run(slow);  // when nobody else has the engine look
  expect_error();
  test.results.clear();

  test.engine.submit(slow);
  std::vector<Request> others;
  for (std::uint64_t id = 2; id < 42; ++id) {
    others.push_back(make_request(id, {4, 5}, 90));
    if (has_grammar(others.back())) others.back().grammar = "start: /[a-c]{60}/";
    test.engine.submit(others.back());
  }
  test.collect_until_finished(2 + others.size());
  expect_error();
  for (const Request& other : others) {
    if (has_grammar(other)) {
      EXPECT_EQ(test.results[other.id].finish, FinishReason::stop);
    } else {
      ASSERT_NO_FATAL_FAILURE(expect_reference(test.results[other.id], other));
    }
  }
  test.engine.stop();
  test.expect_idle();
}

// Its sequence goes on when the mask is there, and the others don't wait for it.
TEST_F(EngineGrammar, ADrawWhoseMaskDoesNotComeIsWithdrawn) {
  EngineConfig config = options();
  config.mask_limit_ms = 60'000;
  std::vector<Request> requests;
  for (std::uint64_t id = 1; id <= 12; ++id) {
    const bool is_slow = id % 2 == 0;
    requests.push_back(make_request(id, {4, 5}, is_slow ? 5 : 90));
    Request& request = requests.back();
    request.ignore_eos = true;
    request.sampling.frequency_penalty = 0.5f;  // counts nothing that isn't drawn
    if (is_slow) request.grammar = ambiguous_grammar(3);
  }
  auto device = std::make_unique<AsyncDevice>(Pace::dawdling);
  const AsyncDevice& observed = *device;
  TestEngine together(std::move(device), config), alone(config);
  run_all(together, requests);
  alone.engine.start();
  open(alone);
  for (const Request& request : requests) {
    const TestEngine::Result& expected = alone.run(request);
    EXPECT_EQ(together.results[request.id].token_ids(), expected.token_ids()) << "request " << request.id;
    EXPECT_EQ(together.results[request.id].finish, FinishReason::length);
  }
  EXPECT_GT(observed.num_withdrawn(), 0);
}

TEST_F(EngineGrammar, AbortsAtAnyMomentLeaveNothingBehind) {
  const std::vector<Request> requests = some_requests(80);
  std::size_t num_aborted = 0;
  for (unsigned seed = 1; seed <= 6; ++seed) {
    TestEngine test(std::make_unique<AsyncDevice>(seed % 2 == 0 ? Pace::dawdling : Pace::at_once), options(40));
    test.engine.start();
    open(test);
    for (const Request& request : requests) test.engine.submit(request);
    std::thread aborter([&] {
      std::mt19937 random(seed);
      for (int i = 0; i < 60; ++i) {
        test.engine.abort(1 + random() % requests.size());
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
      }
      if (seed > 4) test.engine.stop();
    });
    test.collect_until_finished(requests.size());
    aborter.join();
    for (const Request& request : requests) {
      if (!has_grammar(request)) continue;
      const std::vector<std::int32_t> got = test.results[request.id].token_ids(),
                                      expected = alone(requests).at(request.id).token_ids();
      ASSERT_LE(got.size(), expected.size());
      ASSERT_TRUE(std::equal(got.begin(), got.end(), expected.begin())) << "request " << request.id;
      const bool is_aborted = test.results[request.id].finish == FinishReason::abort;
      ASSERT_TRUE(is_aborted || got.size() == expected.size());
      num_aborted += static_cast<std::size_t>(is_aborted);
    }
    test.engine.stop();
    test.expect_idle();
  }
  EXPECT_GT(num_aborted, 20u);
}

TEST_F(EngineGrammar, IsAbortedAtAnyTime) {
  TestEngine test(options());
  test.engine.start();
  std::vector<Request> requests = some_requests(40);
  for (const Request& request : requests) test.engine.submit(request);
  for (const Request& request : requests) {
    if (request.id % 4 == 0) test.engine.abort(request.id);  // before its grammar is read
  }
  open(test);
  for (const Request& request : requests) {
    if (request.id % 4 == 2 && request.id % 8 == 2) test.engine.abort(request.id);
  }
  test.collect_until_finished(requests.size());
  for (const Request& request : requests) {
    if (request.id % 4 == 0) {
      EXPECT_EQ(test.results[request.id].finish, FinishReason::abort);
    }
  }
  test.engine.stop();
  test.expect_idle();
}

TEST_F(EngineGrammar, IsRefusedWhereThereIsNoLibrary) {
  for (const bool is_missing : {true, false}) {
    TestEngine test(options());
    test.engine.start();
    Request request = make_request(1, {5}, 10);
    request.grammar = "start: \"a\"";
    test.engine.submit(request);
    is_missing ? test.engine.refuse_grammars("nobody has it") : test.engine.open_grammars("/nowhere.so", letters());
    test.collect_until_finished(1);
    EXPECT_EQ(test.results[1].finish, FinishReason::error);
    EXPECT_THAT(test.results[1].last.error, testing::HasSubstr(is_missing ? "nobody has it" : "/nowhere.so"));
    const Request other = make_request(2, {5}, 10);
    expect_reference(test.run(other), other);
  }
}

TEST_F(EngineGrammar, IsRefusedWhereThreadsHaveLittleStack) {
  pthread_attr_t usual, little;
  ASSERT_EQ(pthread_getattr_default_np(&usual), 0);
  ASSERT_EQ(pthread_getattr_default_np(&little), 0);
  pthread_attr_setstacksize(&little, std::size_t{1} << 20);
  ASSERT_EQ(pthread_setattr_default_np(&little), 0);
  TestEngine test(options());
  std::string error;
  try {
    open(test);
  } catch (const InputError& refusal) {
    error = refusal.what();
  }
  pthread_setattr_default_np(&usual);
  EXPECT_EQ(error, "threads have a stack of 1024 KiB, and grammars need 2048: raise the limit (ulimit -s)");
}

TEST_F(EngineGrammar, StopsWhileAMaskIsMade) {
  TestEngine test(options());
  test.engine.start();
  Request request = make_request(1, {5}, 95);
  request.grammar = "start: e\ne: e e | \"a\" | e e e | \"\"";
  request.ignore_eos = true;
  test.engine.submit(request);
  open(test);
  test.collect();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  test.engine.stop();
  test.collect_until_finished(1);
}

}  // namespace
}  // namespace minisgl::testing_support
