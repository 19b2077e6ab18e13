// How the weights of products lie in a GPU's memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace minisgl::cuda {

enum class WeightFormat {
  bf16,         // [rows, cols]
  e4m3_rows,    // [rows, cols] bytes in the order of e4m3_place(), times scales [rows] f32
  e4m3_blocks,  // the same bytes, times scales [rows / 128, cols / 128] f32, rounded up
};

constexpr std::int64_t kScaleBlock = 128;  // rows and columns that share a scale of e4m3_blocks
constexpr std::int64_t scale_blocks(std::int64_t count) {
  return (count + kScaleBlock - 1) / kScaleBlock;
}

constexpr bool is_e4m3(WeightFormat format) {
  return format == WeightFormat::e4m3_rows || format == WeightFormat::e4m3_blocks;
}

// Bytes of 16 neighbouring columns lie so that four in a row are what a lane of a tensor-core instruction holds of
// them: columns 2 q, 2 q + 8, 2 q + 1 and 2 q + 9 at 4 q. Where the column `column` of a row lies:
constexpr std::int64_t e4m3_place(std::int64_t column) {
  const std::int64_t in_group = column % 16;
  return column - in_group + in_group % 8 / 2 * 4 + in_group % 2 * 2 + in_group / 8;
}

struct DeviceWeights {
  WeightFormat format = WeightFormat::bf16;
  const void* data = nullptr;
  const void* scales = nullptr;  // null where the format has none
};

constexpr std::size_t weight_bytes(WeightFormat format, std::int64_t rows, std::int64_t cols) {
  return static_cast<std::size_t>(rows * cols) * (format == WeightFormat::bf16 ? 2 : 1);
}
constexpr std::size_t scale_bytes(WeightFormat format, std::int64_t rows, std::int64_t cols) {
  switch (format) {
    case WeightFormat::bf16: return 0;
    case WeightFormat::e4m3_rows: return static_cast<std::size_t>(rows) * sizeof(float);
    case WeightFormat::e4m3_blocks:
      return static_cast<std::size_t>(scale_blocks(rows) * scale_blocks(cols)) * sizeof(float);
  }
  return 0;
}

}  // namespace minisgl::cuda
