// A small model through the engine on the GPU: recorded decode steps, chunked prefill and company against the same
// model on the CPU. Tokens must agree up to the first near-tie of the CPU's own distribution.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "engine/device_answers.h"
#include "io/temporary_folder.h"
#include "kernels/devices.h"

namespace minisgl::testing_support {
namespace {

TEST(DeviceEngine, TheGpuSaysWhatTheCpuSays) {
  MINISGL_SKIP_WITHOUT(DeviceKind::cuda);
  const auto requests = many_requests();
  const auto expected = answers_of(make_cpu_device(2), requests, small_device_options());
  const auto eager = answers_of(make_cuda_device(0, 2), requests, small_device_options());
  const auto replayed = answers_of(make_cuda_device(0, 2), requests, small_device_options(true));
  const int eager_whole = compare(eager, expected, requests), replayed_whole = compare(replayed, expected, requests);
  std::printf("of %zu answers equal to the CPU's: %d without graphs, %d with\n", requests.size(), eager_whole,
              replayed_whole);
  EXPECT_GE(eager_whole, 20);
  EXPECT_GE(replayed_whole, 20);
}

// What the GPU measures of itself is measured at start: no prompt of whatever length adds to it.
TEST(DeviceEngine, NothingIsMeasuredInFrontOfARequest) {
  MINISGL_SKIP_WITHOUT(DeviceKind::cuda);
  const minisgl::testing::TemporaryFolder folder;
  const auto kept = [&] {
    std::ostringstream all;
    for (const auto& file : std::filesystem::directory_iterator(folder.path()))
      all << std::ifstream(file.path()).rdbuf();
    return all.str();
  };
  EngineConfig options = small_device_options(true);
  options.max_batch_tokens = 512;  // up to 256 rows no product is measured: its kernel is given
  std::string at_start;
  for (const std::size_t most : {std::size_t{0}, std::size_t{200}}) {
    std::vector<Request> requests;
    for (std::size_t length = 1; length <= most; length += 7) {
      Request& request = requests.emplace_back();
      request.id = length;
      request.prompt.assign(length, 3);
      request.max_tokens = 2;
      request.ignore_eos = true;
    }
    answers_of(make_cuda_device(0, 2, nullptr, folder.path()), requests, options);
    if (most == 0) at_start = kept();
  }
  EXPECT_FALSE(at_start.empty());
  EXPECT_EQ(kept(), at_start);
}

// Bytes in the cache: what is read back of a token depends on nothing but the token, so company and recordings change
// no more than without them.
TEST(DeviceEngine, RecordedStepsOverAnFp8CacheSayWhatOthersSay) {
  MINISGL_SKIP_WITHOUT(DeviceKind::cuda);
  const auto requests = many_requests();
  EngineConfig options = small_device_options();
  options.kv_dtype = DType::f8e4m3;
  const auto eager = answers_of(make_cuda_device(0, 2), requests, options);
  options.cuda_graphs = true;
  const int whole = compare(answers_of(make_cuda_device(0, 2), requests, options), eager, requests);
  std::printf("of %zu answers over an fp8 cache equal with and without graphs: %d\n", requests.size(), whole);
  EXPECT_GE(whole, 20);
}

// Forces five tokens behind every fifth one, or drafts what was said after the same token before.
class Ahead final : public Lookahead {
 public:
  explicit Ahead(bool forces) : forces_(forces) {}
  Lookahead::Ahead look(std::span<const std::int32_t> tokens) override {
    const std::int32_t last = tokens.back();
    if (forces_) {
      if (last % 5 != 0) return {};
      return {.forced = {last + 1, last / 2 + 1, 7, 8, 11}, .drafts = {}};
    }
    for (std::size_t i = tokens.size() - 1; i-- > 0;) {
      if (tokens[i] != last) continue;
      const auto after = tokens.subspan(i + 1).first(std::min<std::size_t>(4, tokens.size() - i - 1));
      return {.forced = {}, .drafts = {after.begin(), after.end()}};
    }
    return {};
  }

 private:
  bool forces_;
};

// Rows of one sequence attend to each other in a step that was recorded of as many sequences.
TEST(DeviceEngine, SeveralRowsOfASequenceInARecordedStepSayWhatOthersSay) {
  MINISGL_SKIP_WITHOUT(DeviceKind::cuda);
  const auto requests = many_requests();
  EngineConfig options = small_device_options();
  options.max_drafts = 24;
  const auto answers = [&](bool graphs) {
    options.cuda_graphs = graphs;
    return answers_of(make_cuda_device(0, 2), requests, options, {}, nullptr,
                      [](const Request& request) -> std::unique_ptr<Lookahead> {
                        if (request.id % 3 == 2) return nullptr;  // it runs ahead
                        return std::make_unique<Ahead>(request.id % 3 == 0);
                      });
  };
  const auto eager = answers(false);
  std::size_t num_forced = 0;
  for (const auto& [id, answer] : eager) {
    num_forced += static_cast<std::size_t>(
        std::ranges::count_if(answer.tokens, [](const TokenOutput& token) { return std::isnan(token.logprob); }));
  }
  EXPECT_GT(num_forced, 100u);
  const int whole = compare(answers(true), eager, requests);
  std::printf("of %zu answers with several rows per step equal with and without graphs: %d\n", requests.size(), whole);
  EXPECT_GE(whole, 20);
}

}  // namespace
}  // namespace minisgl::testing_support
