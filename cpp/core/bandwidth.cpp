#include "core/bandwidth.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/aligned_buffer.h"

namespace minisgl {
namespace {

constexpr std::size_t kChunk = std::size_t{1} << 20;
constexpr int kSweeps = 7;

// How far ahead memory is asked for: processors' own prefetchers alone keep too few lines under way.
constexpr std::size_t kPrefetchWords = 4096 / sizeof(std::uint64_t);

// Eight independent sums, so that the loads and not the additions set the pace.
std::uint64_t sum_words(const std::uint64_t* words, std::size_t count) {
  std::uint64_t sums[8] = {};
  for (std::size_t i = 0; i + 8 <= count; i += 8) {
    __builtin_prefetch(words + i + kPrefetchWords);
    for (int lane = 0; lane < 8; ++lane) sums[lane] += words[i + lane];
  }
  std::uint64_t total = 0;
  for (std::uint64_t sum : sums) total += sum;
  return total;
}

}  // namespace

double measure_read_bandwidth(ThreadPool& pool, std::size_t bytes) {
  const std::size_t num_chunks = std::max<std::size_t>(1, bytes / kChunk);
  AlignedBuffer buffer(num_chunks * kChunk);
  std::vector<std::uint64_t> sums(num_chunks);
  const auto chunks = static_cast<std::int64_t>(num_chunks);
  // The buffer is written first: untouched pages would all be the kernel's one zero page.
  pool.parallel_for(chunks, [&](std::int64_t chunk, int) { std::memset(buffer.data() + chunk * kChunk, 1, kChunk); });

  std::vector<double> seconds;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    const auto start = std::chrono::steady_clock::now();
    pool.parallel_for(chunks, [&](std::int64_t chunk, int) {
      sums[chunk] = sum_words(buffer.as<std::uint64_t>() + chunk * (kChunk / 8), kChunk / 8);
    });
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  // The sum is used, so that the reads cannot be optimised away.
  volatile std::uint64_t sink = sums[0];
  (void)sink;
  std::nth_element(seconds.begin(), seconds.begin() + kSweeps / 2, seconds.end());
  return static_cast<double>(num_chunks * kChunk) / seconds[kSweeps / 2];
}

}  // namespace minisgl
