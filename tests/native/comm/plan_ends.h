// Two ends of a plan channel in one process, and frames that say whether they arrived whole.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <random>
#include <vector>

#include "comm/file_descriptor.h"
#include "comm/plan_ring.h"

namespace minisgl::testing_support {

// Memory for a ring of `capacity` bytes.
inline FileDescriptor ring_memory(std::size_t capacity) {
  FileDescriptor memory(memfd_create("test", MFD_CLOEXEC));
  EXPECT_EQ(ftruncate(memory.get(), static_cast<off_t>(plan_ring_bytes(capacity))), 0);
  return memory;
}

inline std::vector<std::byte> random_frame(std::mt19937& random, std::size_t max_bytes) {
  std::vector<std::byte> frame(random() % (max_bytes + 1));
  for (std::byte& byte : frame) byte = static_cast<std::byte>(random());
  return frame;
}

// Sends `count` random frames of a seed.
inline void send_frames(PlanSender& sender, int count, std::size_t max_bytes, unsigned seed) {
  std::mt19937 random(seed);
  for (int i = 0; i < count; ++i) sender.send(random_frame(random, max_bytes));
}

// Expects the same ones; sometimes it is slow.
inline void expect_frames(PlanReceiver& receiver, int count, std::size_t max_bytes, unsigned seed, unsigned pauses) {
  std::mt19937 random(seed), pause(pauses);
  for (int i = 0; i < count; ++i) {
    const std::vector<std::byte> wanted = random_frame(random, max_bytes);
    if (pause() % 64 == 0) usleep(200);
    const auto frame = receiver.receive();
    ASSERT_TRUE(std::equal(wanted.begin(), wanted.end(), frame.begin(), frame.end())) << "frame " << i;
  }
}

template <typename Call>
void expect_failure(Call call, const std::string& sentence) {
  try {
    call();
    FAIL() << "no error, wanted: " << sentence;
  } catch (const RankFailure& error) {
    EXPECT_EQ(error.what(), sentence);
  }
}

}  // namespace minisgl::testing_support
