#include "comm/sum_table.h"

#include "core/error.h"

namespace minisgl {
namespace {

constexpr float kNeededGain = 0.97F;

const char* text_of(SumWay way) {
  switch (way) {
    case SumWay::in_place: return "by NCCL in place";
    case SumWay::registered: return "by NCCL in a registered buffer";
    case SumWay::one_shot: return "in one shot";
    case SumWay::two_shot: return "in two shots";
  }
  return "";
}

std::string text_of_bytes(std::int64_t num_bytes) {
  return num_bytes < 1 << 20 ? concat(num_bytes >> 10, " KB") : concat(num_bytes >> 20, " MB");
}

}  // namespace

SumWay fastest_way(const SumTimes& times) {
  SumWay best = SumWay::in_place;
  float limit = times[static_cast<std::size_t>(SumWay::in_place)] * kNeededGain;
  for (const SumWay way : {SumWay::registered, SumWay::one_shot, SumWay::two_shot}) {
    const float time = times[static_cast<std::size_t>(way)];
    if (time >= limit) continue;
    best = way;
    limit = time;
  }
  return best;
}

SumTable::SumTable(SumWay way) : beyond_(way) {
  ways_.fill(way);
}

SumWay SumTable::way_of(std::int64_t num_bytes) const {
  for (int size_class = 0; size_class < kNumClasses; ++size_class)
    if (num_bytes <= bytes_of(size_class)) return ways_[static_cast<std::size_t>(size_class)];
  return beyond_;
}

std::string SumTable::text() const {
  std::string text;
  for (int size_class = 0; size_class < kNumClasses; ++size_class) {
    const SumWay way = ways_[static_cast<std::size_t>(size_class)];
    const bool is_last = size_class + 1 == kNumClasses;
    if (way == (is_last ? beyond_ : ways_[static_cast<std::size_t>(size_class) + 1])) continue;
    text +=
        concat(text.empty() ? "sums of up to " : ", up to ", text_of_bytes(bytes_of(size_class)), " ", text_of(way));
  }
  return concat(text.empty() ? "all sums " : text + ", larger ones ", text_of(beyond_));
}

}  // namespace minisgl
