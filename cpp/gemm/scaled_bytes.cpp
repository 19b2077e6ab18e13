// A table of the 256 values, and a product for each byte.
#include "gemm/scaled_bytes.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "core/half.h"

namespace minisgl {

std::vector<std::uint16_t> widen_e4m3(std::span<const std::byte> raw, std::int64_t rows, std::int64_t cols,
                                      const ScaleGrid& scales, ThreadPool& pool) {
  const std::int64_t across = (cols + scales.block_cols - 1) / scales.block_cols;
  const std::int64_t down = (rows + scales.block_rows - 1) / scales.block_rows;
  MINISGL_CHECK(std::ssize(raw) == rows * cols && std::ssize(scales.values) == across * down, rows, " x ", cols, " in ",
                raw.size(), " bytes, ", scales.values.size(), " scales");
  std::array<float, 256> values;
  for (int byte = 0; byte < 256; ++byte)
    values[static_cast<std::size_t>(byte)] = e4m3_to_f32(static_cast<std::uint8_t>(byte));
  std::vector<std::uint16_t> wide(raw.size());
  pool.parallel_for(rows, [&](std::int64_t row, int) {
    const float* row_scales = scales.values.data() + row / scales.block_rows * across;
    for (std::int64_t first = 0; first < cols; first += scales.block_cols) {
      const float scale = row_scales[first / scales.block_cols];
      const std::int64_t end = std::min(cols, first + scales.block_cols);
      for (std::int64_t i = row * cols + first; i < row * cols + end; ++i) {
        const auto at = static_cast<std::size_t>(i);
        wide[at] = f32_to_bf16(values[std::to_integer<std::size_t>(raw[at])] * scale);
      }
    }
  });
  return wide;
}

}  // namespace minisgl
