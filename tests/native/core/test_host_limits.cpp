// Limits as control groups of both versions write them, in a folder that plays the root.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/host_limits.h"

namespace minisgl {
namespace {

class HostLimits : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "host_limits_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    write("proc/meminfo", "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:   4000 kB\n");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = std::filesystem::path(root_) / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

  std::string root_;
};

TEST_F(HostLimits, WithoutGroups) {
  EXPECT_EQ(available_memory(root_), 4000 * 1024);
  EXPECT_GE(usable_processors(root_), 1);
  EXPECT_GE(available_memory(), 1);  // of the real machine
}

TEST_F(HostLimits, Version2AsksTheAncestors) {
  write("proc/self/cgroup", "0::/service/worker\n");
  write("sys/fs/cgroup/service/worker/cpu.max", "max 100000\n");
  write("sys/fs/cgroup/service/cpu.max", "50000 100000\n");
  write("sys/fs/cgroup/service/worker/memory.max", "max\n");
  write("sys/fs/cgroup/service/worker/memory.current", "5000\n");
  write("sys/fs/cgroup/service/memory.max", "1000000\n");
  write("sys/fs/cgroup/service/memory.current", "900000\n");
  write("sys/fs/cgroup/service/memory.stat", "anon 1\ninactive_file 20000\nactive_file 3000\n");
  EXPECT_EQ(usable_processors(root_), 1);  // half a processor
  EXPECT_EQ(available_memory(root_), 123000);
}

TEST_F(HostLimits, Version1InAContainerWithTheHostsPath) {
  write("proc/self/cgroup", "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "300000\n");
  write("sys/fs/cgroup/memory/memory.usage_in_bytes", "400000\n");
  EXPECT_EQ(usable_processors(root_), 1);
  EXPECT_EQ(available_memory(root_), 0);  // over the limit, never negative
}

TEST_F(HostLimits, NoQuotaIsNoLimit) {
  const int all = usable_processors(root_);
  write("proc/self/cgroup", "0::/\n1:cpu:/\n");
  write("sys/fs/cgroup/cpu.max", "max 100000\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(usable_processors(root_), all);
}

}  // namespace
}  // namespace minisgl
