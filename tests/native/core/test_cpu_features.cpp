// Which instruction sets are offered: always a portable one, in rising order, the chosen one among them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "core/cpu_features.h"
#include "core/error.h"

namespace minisgl {
namespace {

TEST(CpuFeatures, PortableIsAlwaysThereAndTheOrderRises) {
  const auto isas = supported_cpu_isas();
  ASSERT_FALSE(isas.empty());
  EXPECT_EQ(isas.front(), CpuIsa::portable);
  EXPECT_TRUE(std::is_sorted(isas.begin(), isas.end()));
}

TEST(CpuFeatures, EverySetHasABaseThatIsSupported) {
  const auto bases = supported_base_isas();
  for (const CpuIsa isa : supported_cpu_isas()) {
    EXPECT_NE(std::find(bases.begin(), bases.end(), base_isa(isa)), bases.end()) << cpu_isa_label(isa);
  }
  for (const CpuIsa isa : bases) EXPECT_EQ(base_isa(isa), isa);
}

// Each runs in a process of its own: the choice is made once.
TEST(CpuFeaturesDeathTest, EnvironmentChoosesALesserOne) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(
      {
        setenv("MINISGL_CPU_ISA", "portable", 1);
        std::exit(cpu_isa() == CpuIsa::portable ? 0 : 1);
      },
      testing::ExitedWithCode(0), "");
}

TEST(CpuFeaturesDeathTest, UnknownNameIsAnInputError) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(
      {
        setenv("MINISGL_CPU_ISA", "mmx", 1);
        try {
          cpu_isa();
        } catch (const InputError& error) {
          fputs(error.what(), stderr);
          std::exit(3);
        }
      },
      testing::ExitedWithCode(3), "MINISGL_CPU_ISA is 'mmx', but this processor has: portable");
}

}  // namespace
}  // namespace minisgl
