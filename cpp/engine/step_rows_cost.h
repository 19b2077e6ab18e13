// How long a step takes by its rows, where each of them draws: measured as steps run.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace minisgl {

class StepRowsCost {
 public:
  static constexpr std::int64_t kExact = 128;  // numbers of rows up to it count by themselves

  // A step of so many rows took so long.
  void learn(std::int64_t rows, double seconds) {
    Entry& entry = entries_[index_of(rows)];
    ++num_steps_;
    // One that was held up by something else counts as twice as long as usual, at most.
    const double usual = entry.seconds > 0 ? std::min(seconds, 2 * entry.seconds) : seconds;
    entry.count = std::min(entry.count + 1, kMemory);
    entry.seconds += (usual - entry.seconds) / entry.count;
    entry.latest = num_steps_;
  }

  // Of a number that wasn't seen lately, a guess on the low side: so it is tried, and known. 0: nothing was seen.
  double predict(std::int64_t rows) const {
    const std::size_t index = index_of(rows);
    const double known = entries_[index].seconds;
    if (known > 0 && num_steps_ - entries_[index].latest < kLately) return known;
    double guess = 0;
    for (std::size_t i = index; i-- > 0 && guess == 0;) {
      if (entries_[i].seconds == 0) continue;
      const double per_row = std::min(kPerRow, 0.5 / std::max(1.0, static_cast<double>(i)));
      guess = entries_[i].seconds * (1 + per_row * static_cast<double>(index - i));
    }
    for (std::size_t i = index + 1; i < entries_.size() && guess == 0; ++i) guess = entries_[i].seconds;
    return known > 0 ? std::min(known, guess > 0 ? guess : known) : guess;
  }

 private:
  static constexpr double kMemory = 32;           // steps
  static constexpr std::uint64_t kLately = 2000;  // steps
  static constexpr double kPerRow = 0.02;
  struct Entry {
    double seconds = 0, count = 0;
    std::uint64_t latest = 0;
  };

  // Beyond kExact by eighths of powers of two.
  static std::size_t index_of(std::int64_t rows) {
    if (rows <= kExact) return static_cast<std::size_t>(rows);
    const double octaves = std::log2(static_cast<double>(rows) / static_cast<double>(kExact));
    return std::min(static_cast<std::size_t>(kExact) + 1 + static_cast<std::size_t>(8 * octaves), kEntries - 1);
  }

  static constexpr std::size_t kEntries = 224;
  std::array<Entry, kEntries> entries_ = {};
  std::uint64_t num_steps_ = 0;
};

}  // namespace minisgl
