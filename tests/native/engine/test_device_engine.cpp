// A small model through the engine on the GPU: recorded decode steps, chunked prefill and company against the same
// model on the CPU. Tokens must agree up to the first near-tie of the CPU's own distribution.
#include <gtest/gtest.h>

#include <cstdio>

#include "engine/device_answers.h"
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
