// The random numbers, against the known answers published with Random123 and for what sampling asks of them.
#include <gtest/gtest.h>

#include <set>

#include "kernels/philox.h"

namespace minisgl {
namespace {

TEST(Philox, GivesThePublishedKnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (PhiloxWords{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (PhiloxWords{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (PhiloxWords{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformUsesAllBitsOfSeedAndPosition) {
  std::set<double> seen;
  for (int bit = 0; bit < 64; ++bit) {
    seen.insert(philox_uniform(std::uint64_t{1} << bit, 0));
    seen.insert(philox_uniform(0, std::uint64_t{1} << bit));
  }
  EXPECT_EQ(seen.size(), 128u);
}

TEST(Philox, UniformIsUniform) {
  constexpr int kBins = 64, kDraws = 64000;
  int counts[kBins] = {};
  for (std::uint64_t position = 0; position < kDraws; ++position) {
    const double u = philox_uniform(42, position);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    ++counts[static_cast<int>(u * kBins)];
  }
  double chi_square = 0;  // 63 degrees of freedom: 99.9% lie below 104
  for (const int count : counts) chi_square += (count - 1000.0) * (count - 1000.0) / 1000.0;
  EXPECT_LT(chi_square, 104);
}

}  // namespace
}  // namespace minisgl
