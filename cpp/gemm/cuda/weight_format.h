// How the weights of products lie in a GPU's memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace minisgl::cuda {

enum class WeightFormat {
  bf16,         // [rows, cols]
  e4m3_rows,    // [rows, cols] bytes in the order of e4m3_place(), times scales [rows] f32
  e4m3_blocks,  // the same bytes, times scales [rows / 128, cols / 128] f32, rounded up
  // Units of 8 rows and 128 columns (quantised_form.cuh), named by the bits of their integers q, by what a group of
  // columns has beside its scale, and by the group's columns. A value is scale * (q - zero), or scale * q + offset;
  // both are f16. The zero of `middle` is half of what q can be.
  q4_offset_32,  // Q4_0, Q4_1, Q4_K
  q4_zero_64,    // int4 checkpoints with groups of 64
  q4_zero_128,   // with groups of 128
  q5_offset_32,  // Q5_0, Q5_1, Q5_K
  q6_middle_16,  // Q6_K
  q8_middle_32,  // Q8_0
  q8_offset_16,  // matrices of several of these as one
};

constexpr std::int64_t kScaleBlock = 128;  // rows and columns that share a scale of e4m3_blocks
constexpr std::int64_t scale_blocks(std::int64_t count) {
  return (count + kScaleBlock - 1) / kScaleBlock;
}

constexpr bool is_e4m3(WeightFormat format) {
  return format == WeightFormat::e4m3_rows || format == WeightFormat::e4m3_blocks;
}

constexpr bool is_quantised(WeightFormat format) {
  return format >= WeightFormat::q4_offset_32;
}
constexpr std::int64_t kUnitRows = 8, kUnitColumns = 128;  // what is missing of the last units is zeros
constexpr std::int64_t num_units(std::int64_t rows, std::int64_t cols) {
  return (rows + kUnitRows - 1) / kUnitRows * ((cols + kUnitColumns - 1) / kUnitColumns);
}
constexpr std::int64_t unit_bytes(WeightFormat format) {
  switch (format) {
    case WeightFormat::q4_offset_32: return 512 + 128;
    case WeightFormat::q4_zero_64: return 512 + 64;
    case WeightFormat::q4_zero_128: return 512 + 32;
    case WeightFormat::q5_offset_32: return 640 + 128;
    case WeightFormat::q6_middle_16: return 768 + 128;
    case WeightFormat::q8_middle_32: return 1024 + 64;
    case WeightFormat::q8_offset_16: return 1024 + 256;
    case WeightFormat::bf16:
    case WeightFormat::e4m3_rows:
    case WeightFormat::e4m3_blocks: break;
  }
  return 0;
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
  if (is_quantised(format)) return static_cast<std::size_t>(num_units(rows, cols) * unit_bytes(format));
  return static_cast<std::size_t>(rows * cols) * (format == WeightFormat::bf16 ? 2 : 1);
}
constexpr std::size_t scale_bytes(WeightFormat format, std::int64_t rows, std::int64_t cols) {
  switch (format) {
    case WeightFormat::bf16: return 0;
    case WeightFormat::e4m3_rows: return static_cast<std::size_t>(rows) * sizeof(float);
    case WeightFormat::e4m3_blocks:
      return static_cast<std::size_t>(scale_blocks(rows) * scale_blocks(cols)) * sizeof(float);
    default: return 0;  // a unit has its own
  }
  return 0;
}

}  // namespace minisgl::cuda
