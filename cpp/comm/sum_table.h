// Which way of summing GPUs take for which size.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <type_traits>

namespace minisgl {

enum class SumWay : std::int32_t {
  in_place,    // NCCL, in the caller's memory
  registered,  // NCCL, in a registered buffer, with a copy in and one out
  one_shot,    // each rank writes all of its data into the memory of the others
  two_shot,    // each rank sums a share, and writes the sum into the memory of the others
};
constexpr int kNumSumWays = 4;

// Microseconds of a sum, by way; infinity for a way that can't be taken.
using SumTimes = std::array<float, kNumSumWays>;

// The fastest way. Another one than NCCL in place must win by 3%: what is as fast as a plain NCCL call isn't worth its
// memory, and within that the clock doesn't tell them apart.
SumWay fastest_way(const SumTimes& times);

// The ways by size classes, which double. A size belongs to the smallest class that holds it; sums beyond the largest
// class go one way.
class SumTable {
 public:
  static constexpr std::int64_t kFirstBytes = 4 << 10;
  static constexpr int kNumClasses = 15;  // to 64 MB

  static constexpr std::int64_t bytes_of(int size_class) { return kFirstBytes << size_class; }

  // All sums go that way.
  explicit SumTable(SumWay way = SumWay::in_place);

  SumWay way_of(std::int64_t num_bytes) const;
  void set(int size_class, SumWay way) { ways_[static_cast<std::size_t>(size_class)] = way; }
  // For people: "sums of up to 256 KB in one shot, up to 8 MB in two shots, larger ones by NCCL in place".
  std::string text() const;

 private:
  std::array<SumWay, kNumClasses> ways_;
  SumWay beyond_;
};

// Rank 0 sends its own to the others.
static_assert(std::is_trivially_copyable_v<SumTable>);

}  // namespace minisgl
