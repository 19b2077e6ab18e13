// Pages that go to pinned memory and come back are the same to the byte, and steps wait for what is on its way.
#include <gtest/gtest.h>

#include <condition_variable>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cuda/backend.h"
#include "kernels/devices.h"

namespace minisgl {
namespace {

// A cache of two strips: six planes of pages in a row, and six more with smaller ones.
class HostPagesOnGpu : public testing::Test {
 protected:
  static constexpr std::int64_t kPlanes = 6, kLarge = 96 << 10, kSmall = 512;
  static constexpr std::int64_t kPageBytes = kPlanes * (kLarge + kSmall);
  static constexpr std::int32_t kDevicePages = 300, kHostPages = 700;  // about four chunks of pinned memory

  void SetUp() override {
    MINISGL_SKIP_WITHOUT(testing_support::DeviceKind::cuda);
    device_ = make_cuda_device(0, 1);
    memory_ = device_->allocate(static_cast<std::size_t>(kDevicePages * kPageBytes));
    std::byte* at = memory_.data();
    for (const std::int64_t bytes : {kLarge, kSmall}) {
      for (std::int64_t i = 0; i < kPlanes; ++i, at += kDevicePages * bytes) planes_.push_back({at, bytes});
    }
    host_ = device_->make_host_pages(
        {.planes = planes_, .num_device_pages = kDevicePages, .num_pages = kHostPages, .on_change = [this] {
           const std::lock_guard lock(mutex_);
           changed_.notify_all();
         }});
  }
  void TearDown() override { host_.reset(); }

  template <typename Condition>
  void wait_until(const Condition& condition) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(60), condition));
  }
  std::vector<std::byte> read() {
    std::vector<std::byte> bytes(memory_.size());
    device_->download(memory_.data(), bytes);
    return bytes;
  }
  // Whether page `a` of one memory is page `b` of the other.
  bool is_same(const std::vector<std::byte>& one, std::int32_t a, const std::vector<std::byte>& other, std::int32_t b) {
    for (const auto& [data, bytes] : planes_) {
      const auto offset = data - memory_.data();
      if (std::memcmp(one.data() + offset + a * bytes, other.data() + offset + b * bytes,
                      static_cast<std::size_t>(bytes)) != 0) {
        return false;
      }
    }
    return true;
  }

  std::unique_ptr<Device> device_;
  DeviceBuffer memory_;
  std::vector<PagePlane> planes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::unique_ptr<HostPages> host_;
};

TEST_F(HostPagesOnGpu, ComeBackAsTheyWent) {
  const double seconds = host_->measure_page_seconds();
  EXPECT_GT(seconds, 0);
  std::printf("%.1f GB/s from the host to the device, in pages of %lld KB\n",
              static_cast<double>(kPageBytes) / seconds * 1e-9, static_cast<long long>(kPageBytes >> 10));
  host_->start();
  wait_until([this] { return host_->num_ready() == kHostPages; });
  std::mt19937 random(3);
  std::vector<std::byte> before(memory_.size());
  for (std::size_t i = 0; i + 4 <= before.size(); i += 4) {
    const auto word = static_cast<std::uint32_t>(random());
    std::memcpy(before.data() + i, &word, 4);
  }
  device_->upload(before, memory_.data());
  device_->synchronize();
  std::vector<std::int32_t> host_of(kHostPages), device_of(kDevicePages);
  std::iota(host_of.begin(), host_of.end(), 0);
  std::iota(device_of.begin(), device_of.end(), 0);
  std::ranges::shuffle(host_of, random);
  std::ranges::shuffle(device_of, random);
  for (std::int32_t page = 0; page < kDevicePages; ++page) {
    host_->copy_out(page, host_of[static_cast<std::size_t>(page)]);
    if (page % 100 == 99) host_->end_copies(static_cast<std::uint64_t>(page / 100) + 1);
  }
  wait_until([this] { return host_->num_done() == 3; });
  const std::vector<std::byte> nothing(before.size());
  device_->upload(nothing, memory_.data());
  device_->synchronize();
  for (std::int32_t page = 0; page < kDevicePages; ++page) {
    host_->copy_in(host_of[static_cast<std::size_t>(page)], device_of[static_cast<std::size_t>(page)]);
  }
  host_->end_copies(4);
  host_->hold_steps(4);  // what is downloaded next on the steps' stream is there
  const std::vector<std::byte> after = read();
  for (std::int32_t page = 0; page < kDevicePages; ++page) {
    ASSERT_TRUE(is_same(after, device_of[static_cast<std::size_t>(page)], before, page)) << "page " << page;
  }
  wait_until([this] { return host_->num_done() == 4; });
}

TEST_F(HostPagesOnGpu, EndWhileTheyArePinnedAndCopied) {
  host_->start();
  for (std::int32_t page = 0; page < 200; ++page) host_->copy_out(page, page);
  host_->end_copies(1);
  host_.reset();
  EXPECT_EQ(read(), std::vector<std::byte>(memory_.size()));
}

}  // namespace
}  // namespace minisgl
