// An engine on a GPU whose prefixes go to pinned memory and come back says what it says without.
#include <gtest/gtest.h>
#include <poll.h>

#include <cstdio>

#include "engine/device_answers.h"
#include "kernels/cuda/backend.h"
#include "kernels/devices.h"

namespace minisgl::testing_support {
namespace {

// Conversations in turn, each asked again after as many others as the device has no room for.
TEST(GpuHostTier, DoesNotChangeTokens) {
  MINISGL_SKIP_WITHOUT(DeviceKind::cuda);
  std::vector<Request> requests = many_requests();
  for (std::size_t i = 0; i < 60; ++i) {
    Request again = requests[i];
    again.id += 60;
    requests.push_back(std::move(again));
  }
  EngineConfig options = small_device_options(true);
  options.num_pages = 64;
  const Answers expected = answers_of(make_cpu_device(2), requests, options);
  options.num_host_pages = 2000;
  EngineStats stats;
  const Answers got = answers_of(make_cuda_device(0, 2), requests, options, {}, &stats);
  const int whole = compare(got, expected, requests);
  std::printf("%d of %zu answers equal to the CPU's; %llu tokens came from the host, %llu KB went there\n", whole,
              requests.size(), static_cast<unsigned long long>(stats.host_hits),
              static_cast<unsigned long long>(stats.host_bytes_out >> 10));
  EXPECT_GE(whole, 40);
  EXPECT_GT(stats.host_hits, 200u);
}

}  // namespace
}  // namespace minisgl::testing_support
