// The choice of a way of summing by size, from times.
#include <gtest/gtest.h>

#include <limits>

#include "comm/sum_table.h"

namespace minisgl {
namespace {

constexpr float kNever = std::numeric_limits<float>::infinity();

TEST(SumTable, TheFastestWayWins) {
  // NCCL in place, registered, one shot, two shots
  EXPECT_EQ(fastest_way({9.9F, 11.1F, 3.2F, 4.3F}), SumWay::one_shot);
  EXPECT_EQ(fastest_way({32.9F, 28.8F, kNever, 16.0F}), SumWay::two_shot);
  EXPECT_EQ(fastest_way({250.0F, 375.0F, kNever, 289.0F}), SumWay::in_place);
  EXPECT_EQ(fastest_way({9.0F, 6.0F, kNever, kNever}), SumWay::registered);
}

TEST(SumTable, NcclInPlaceKeepsWhatOthersDontWinByThreePercent) {
  EXPECT_EQ(fastest_way({100.0F, 98.0F, 97.5F, 100.0F}), SumWay::in_place);
  EXPECT_EQ(fastest_way({100.0F, 96.0F, 95.0F, 95.5F}), SumWay::one_shot);
  EXPECT_EQ(fastest_way({100.0F, kNever, kNever, kNever}), SumWay::in_place);
}

TEST(SumTable, ASizeBelongsToTheSmallestClassThatHoldsIt) {
  SumTable table;
  table.set(0, SumWay::one_shot);                            // to 4 KB
  table.set(1, SumWay::two_shot);                            // to 8 KB
  table.set(SumTable::kNumClasses - 1, SumWay::registered);  // to 64 MB
  EXPECT_EQ(table.way_of(1), SumWay::one_shot);
  EXPECT_EQ(table.way_of(4 << 10), SumWay::one_shot);
  EXPECT_EQ(table.way_of((4 << 10) + 2), SumWay::two_shot);
  EXPECT_EQ(table.way_of(8 << 10), SumWay::two_shot);
  EXPECT_EQ(table.way_of((8 << 10) + 2), SumWay::in_place);
  EXPECT_EQ(table.way_of(32 << 20), SumWay::in_place);
  EXPECT_EQ(table.way_of((32 << 20) + 2), SumWay::registered);
  EXPECT_EQ(table.way_of(64 << 20), SumWay::registered);
  EXPECT_EQ(table.way_of((64 << 20) + 2), SumWay::in_place);
}

TEST(SumTable, SaysWhatItChose) {
  EXPECT_EQ(SumTable().text(), "all sums by NCCL in place");
  EXPECT_EQ(SumTable(SumWay::registered).text(), "all sums by NCCL in a registered buffer");
  SumTable table;
  for (int size_class = 0; size_class < 7; ++size_class) table.set(size_class, SumWay::one_shot);
  for (int size_class = 7; size_class < 12; ++size_class) table.set(size_class, SumWay::two_shot);
  EXPECT_EQ(table.text(), "sums of up to 256 KB in one shot, up to 8 MB in two shots, larger ones by NCCL in place");
  table.set(SumTable::kNumClasses - 1, SumWay::registered);
  EXPECT_EQ(table.text(),
            "sums of up to 256 KB in one shot, up to 8 MB in two shots, up to 32 MB by NCCL in place, up to 64 MB by "
            "NCCL in a registered buffer, larger ones by NCCL in place");
}

}  // namespace
}  // namespace minisgl
