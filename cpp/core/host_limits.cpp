// Reads /proc and /sys/fs/cgroup. A limit may stand in any ancestor of the process's group, so all are asked.
#include "core/host_limits.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <optional>
#include <sstream>
#include <thread>
#include <vector>

namespace minisgl {
namespace {

constexpr std::int64_t unlimited = std::numeric_limits<std::int64_t>::max();

// The first number of a file that has one ("max" has none).
std::optional<std::int64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  std::int64_t value;
  if (file >> value) return value;
  return std::nullopt;
}

// The number after `key` in a file of lines "key value ...".
std::optional<std::int64_t> read_field(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string word;
    std::int64_t value;
    if (words >> word && word == key && words >> value) return value;
  }
  return std::nullopt;
}

// Folders of the process's group and its ancestors; `controller` is empty for version 2. Inside a container the path
// may be the host's, which isn't there: the walk ends at the mount's root, which always is.
std::vector<std::string> group_folders(const std::string& root, const std::string& controller) {
  std::ifstream file(root + "/proc/self/cgroup");  // lines of id:controllers:path
  std::vector<std::string> folders;
  for (std::string line; std::getline(file, line);) {
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    if (controllers.find("," + controller + ",") == std::string::npos) continue;
    const std::string mount = root + "/sys/fs/cgroup" + (controller.empty() ? "" : "/" + controller);
    std::string path = line.substr(second + 1);
    while (!path.empty() && path != "/") {
      folders.push_back(mount + path);
      path.erase(path.rfind('/'));
    }
    folders.push_back(mount);
  }
  return folders;
}

double quota_in_processors(const std::string& root) {
  double quota = std::numeric_limits<double>::infinity();
  for (const std::string& folder : group_folders(root, "")) {
    std::ifstream file(folder + "/cpu.max");  // "quota period" or "max period", microseconds
    double allowed, period;
    if (file >> allowed >> period && period > 0) quota = std::min(quota, allowed / period);
  }
  for (const std::string& folder : group_folders(root, "cpu")) {
    const auto allowed = read_number(folder + "/cpu.cfs_quota_us"), period = read_number(folder + "/cpu.cfs_period_us");
    if (allowed && period && *allowed > 0 && *period > 0) {
      quota = std::min(quota, static_cast<double>(*allowed) / static_cast<double>(*period));
    }
  }
  return quota;
}

std::int64_t memory_left_in(const std::string& folder, const char* limit_file, const char* usage_file,
                            const std::string& prefix) {
  const auto limit = read_number(folder + limit_file), usage = read_number(folder + usage_file);
  if (!limit || !usage) return unlimited;
  const std::int64_t cache = read_field(folder + "/memory.stat", prefix + "inactive_file").value_or(0) +
                             read_field(folder + "/memory.stat", prefix + "active_file").value_or(0);
  return std::max<std::int64_t>(0, *limit - *usage + cache);
}

}  // namespace

int usable_processors(const std::string& root) {
  cpu_set_t mask;
  const int allowed = sched_getaffinity(0, sizeof(mask), &mask) == 0
                          ? CPU_COUNT(&mask)
                          : static_cast<int>(std::thread::hardware_concurrency());
  const double quota = std::ceil(quota_in_processors(root));
  return std::max(1, quota < allowed ? static_cast<int>(quota) : allowed);
}

std::int64_t available_memory(const std::string& root) {
  std::int64_t available = unlimited;
  if (const auto kib = read_field(root + "/proc/meminfo", "MemAvailable:")) available = *kib * 1024;
  for (const std::string& folder : group_folders(root, "")) {
    available = std::min(available, memory_left_in(folder, "/memory.max", "/memory.current", ""));
  }
  for (const std::string& folder : group_folders(root, "memory")) {
    available =
        std::min(available, memory_left_in(folder, "/memory.limit_in_bytes", "/memory.usage_in_bytes", "total_"));
  }
  return available;
}

}  // namespace minisgl
