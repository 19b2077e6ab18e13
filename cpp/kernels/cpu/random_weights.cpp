#include "kernels/cpu/random_weights.h"

#include "core/half.h"
#include "kernels/philox.h"

namespace minisgl {

std::vector<std::uint16_t> random_weights(std::int64_t rows, std::int64_t cols, ThreadPool& pool) {
  std::vector<std::uint16_t> values(static_cast<std::size_t>(rows * cols));
  pool.parallel_for(rows, [&](std::int64_t row, int) {
    for (std::int64_t i = 0; i < cols; ++i) {
      const double uniform = philox_uniform(static_cast<std::uint64_t>(row), static_cast<std::uint64_t>(i));
      values[static_cast<std::size_t>(row * cols + i)] = f32_to_bf16(static_cast<float>(uniform - 0.5) * 0.1f);
    }
  });
  return values;
}

}  // namespace minisgl
