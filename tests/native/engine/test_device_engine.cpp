// A small model through the engine on the GPU: recorded decode steps, chunked prefill and company against the same
// model on the CPU. Tokens must agree up to the first near-tie of the CPU's own distribution.
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
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
  options.max_batch_tokens = 256;
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

}  // namespace
}  // namespace minisgl::testing_support
