// Test data.
#pragma once

#include <random>
#include <vector>

namespace minisgl {

inline std::vector<float> random_floats(std::size_t size, unsigned seed, float spread = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> values(size);
  for (float& value : values) value = normal(generator);
  return values;
}

}  // namespace minisgl
