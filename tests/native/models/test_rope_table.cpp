// Rotary frequencies against values computed by transformers, and the growing table.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cpu/backend.h"
#include "models/rope_table.h"

namespace minisgl {
namespace {

RopeSpec spec_of(RopeSpec::Type type) {
  RopeSpec spec;
  spec.type = type;
  spec.rotary_dim = 8;
  spec.factor = 4.0;
  spec.original_max_position = 64.0;
  return spec;
}

void expect_near(const std::vector<float>& actual, const std::vector<double>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 2e-7 * expected[i]) << i;
}

TEST(RopeTable, Frequencies) {
  expect_near(rope_inverse_frequencies(spec_of(RopeSpec::Type::standard), 64), {1.0, 0.1, 0.01, 0.001});
  expect_near(rope_inverse_frequencies(spec_of(RopeSpec::Type::linear), 64), {0.25, 0.025, 0.0025, 0.00025});
}

TEST(RopeTable, Llama3KeepsHighAndDividesLowFrequencies) {
  // Wavelengths are 6.3, 63, 628, 6283: kept below 64 / 4, divided above 64, between only the second.
  const double smooth = (64.0 / (2.0 * M_PI / 0.1) - 1.0) / 3.0;
  expect_near(rope_inverse_frequencies(spec_of(RopeSpec::Type::llama3), 64),
              {1.0, (1.0 - smooth) * 0.1 / 4.0 + smooth * 0.1, 0.0025, 0.00025});
}

TEST(RopeTable, YarnRampAndAttentionFactor) {
  // The range of dimensions is [floor(-0.50), ceil(1.01)] clamped to [0, 7]: the ramp is 0, 1/2, 1, 1.
  RopeSpec spec = spec_of(RopeSpec::Type::yarn);
  expect_near(rope_inverse_frequencies(spec, 64), {1.0, 0.1 * (1.0 / 2.0 + 1.0 / 8.0), 0.0025, 0.00025});
  EXPECT_NEAR(rope_attention_factor(spec), 0.1 * std::log(4.0) + 1.0, 1e-12);
  spec.attention_factor = 1.5;
  EXPECT_EQ(rope_attention_factor(spec), 1.5);
}

TEST(RopeTable, LongropeDividesByTheFactorsOfTheContext) {
  RopeSpec spec = spec_of(RopeSpec::Type::longrope);
  spec.short_factors = {1.0f, 1.0f, 2.0f, 2.0f};
  spec.long_factors = {1.0f, 2.0f, 4.0f, 8.0f};
  expect_near(rope_inverse_frequencies(spec, 64), {1.0, 0.1, 0.005, 0.0005});
  expect_near(rope_inverse_frequencies(spec, 65), {1.0, 0.05, 0.0025, 0.000125});
  EXPECT_NEAR(rope_attention_factor(spec), std::sqrt(1.0 + std::log(4.0) / std::log(64.0)), 1e-12);

  const auto device = make_cpu_device(2);
  RopeTable table(spec, 100000, *device);
  table.set_context(64);
  table.reserve(3);
  EXPECT_FLOAT_EQ(table.data()[2 * 8 + 1], std::cos(0.2f) * static_cast<float>(rope_attention_factor(spec)));
}

TEST(RopeTable, FrequencyFactorsDivide) {
  RopeSpec spec = spec_of(RopeSpec::Type::standard);
  spec.freq_factors = {1.0f, 2.0f, 4.0f, 8.0f};
  expect_near(rope_inverse_frequencies(spec, 64), {1.0, 0.05, 0.0025, 0.000125});
}

TEST(RopeTable, GrowsWithoutChangingWhatIsThere) {
  const auto device = make_cpu_device(2);
  RopeTable table(spec_of(RopeSpec::Type::standard), 100000, *device);
  table.reserve(3);
  const std::vector<float> before(table.data(), table.data() + 3 * 8);
  EXPECT_FLOAT_EQ(before[2 * 8 + 1], std::cos(0.2f));
  EXPECT_FLOAT_EQ(before[2 * 8 + 4 + 1], std::sin(0.2f));
  table.reserve(5000);
  EXPECT_EQ(std::vector<float>(table.data(), table.data() + 3 * 8), before);
  EXPECT_FLOAT_EQ(table.data()[4999 * 8 + 4 + 3], std::sin(4999.0f * 0.001f));
}

}  // namespace
}  // namespace minisgl
