// Sums between CPU ranks by message size, 1 KB to 64 MB, over shared memory and over TCP on this host:
//
//   comm_bench [ranks [shm|tcp]]     (default: 2 ranks, both)
//
// Prints the median time of a call, calls back to back, and the bus bandwidth: 2 (n - 1) / n times bytes over time.
// Each rank is a process of its own, with a processor of its own where there are enough. GPUs: cuda/comm_bench_gpu.cpp.
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "comm/shm.h"
#include "comm/tcp.h"

namespace minisgl {
namespace {

constexpr std::int64_t kSmallest = 1 << 10, kLargest = 64 << 20;
constexpr int kRounds = 9;

// Median microseconds of an all-reduce.
double time_sums(Communicator& comm, std::vector<float>& data, std::int64_t bytes) {
  const std::int64_t num_calls = std::clamp<std::int64_t>((16 << 20) / bytes, 3, 5000);
  std::vector<double> times;
  for (int round = 0; round < kRounds; ++round) {
    comm.barrier(0);
    const auto start = std::chrono::steady_clock::now();
    for (std::int64_t i = 0; i < num_calls; ++i) comm.all_reduce_sum(data.data(), bytes / 4, DType::f32, 0);
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
    times.push_back(took.count() / static_cast<double>(num_calls));
  }
  std::nth_element(times.begin(), times.begin() + kRounds / 2, times.end());
  return times[kRounds / 2];
}

void print_table(Communicator& comm) {
  std::vector<float> data(static_cast<std::size_t>(kLargest / 4));
  if (comm.rank() == 0)
    std::printf("%s, %d ranks\n%12s%12s%12s\n", comm.name().c_str(), comm.size(), "bytes", "us", "GB/s");
  for (std::int64_t bytes = kSmallest; bytes <= kLargest; bytes *= 4) {
    const double microseconds = time_sums(comm, data, bytes);
    const double bus = 2.0 * (comm.size() - 1) / comm.size() * static_cast<double>(bytes) / microseconds / 1e3;
    if (comm.rank() == 0) std::printf("%12lld%12.2f%12.2f\n", static_cast<long long>(bytes), microseconds, bus);
  }
  std::fflush(stdout);
}

void keep_to_a_processor(int rank, int size) {
  cpu_set_t allowed, own;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || CPU_COUNT(&allowed) < size) return;
  CPU_ZERO(&own);
  for (int processor = 0, seen = 0; processor < CPU_SETSIZE; ++processor)
    if (CPU_ISSET(processor, &allowed) && seen++ == rank) CPU_SET(processor, &own);
  sched_setaffinity(0, sizeof(own), &own);
}

int rank_main(int rank, int size, const std::string& kind, const std::string& group) {
  keep_to_a_processor(rank, size);
  if (kind != "tcp") print_table(*make_shm_communicator({group, rank, size}));
  const std::string address = "127.0.0.1:" + std::to_string(20'000 + std::atoi(group.c_str()) % 20'000);
  if (kind != "shm") print_table(*make_tcp_communicator({address, "comm_bench", rank, size}));
  return 0;
}

}  // namespace
}  // namespace minisgl

int main(int argc, char** argv) {
  const int size = argc > 1 ? std::atoi(argv[1]) : 2;
  const std::string kind = argc > 2 ? argv[2] : "both", group = std::to_string(getpid());
  if (size < 2 || (kind != "shm" && kind != "tcp" && kind != "both")) {
    std::fprintf(stderr, "usage: comm_bench [ranks [shm|tcp]], at least 2 ranks\n");
    return 2;
  }
  for (int rank = 0; rank < size; ++rank)
    if (fork() == 0) return minisgl::rank_main(rank, size, kind, group);
  int failures = 0, status = 0;
  while (wait(&status) > 0) failures += status != 0;
  return failures > 0;
}
