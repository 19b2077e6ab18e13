#include "gemm/int4_blocks.h"

#include <cstring>

#include "core/error.h"
#include "core/half.h"

namespace minisgl {
namespace {

constexpr std::int64_t kBlock = 32;       // columns
constexpr std::uint16_t kEight = 0x4800;  // in f16
constexpr std::int64_t kGroupHeader = 4;  // bytes of scale and zero

std::uint16_t u16_at(const std::byte* p) {
  std::uint16_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// 32 columns, two to a byte side by side, as a block's 16 bytes: the second half of the columns in the high nibbles.
void store_halves(const std::byte* pairs, std::byte* to) {
  const auto at = [&](int i) { return static_cast<unsigned>(pairs[i / 2]) >> (i % 2 * 4) & 15; };
  for (int i = 0; i < 16; ++i) to[i] = static_cast<std::byte>(at(i) | at(i + 16) << 4);
}

}  // namespace

FileBlocks int4_as_blocks(DType dtype, std::int64_t rows, std::int64_t cols, std::span<const std::byte> raw,
                          ThreadPool& pool) {
  const std::int64_t group = dtype_info(dtype).block_size, group_bytes = dtype_info(dtype).block_bytes;
  MINISGL_CHECK(static_cast<std::int64_t>(raw.size()) == rows * row_bytes(dtype, cols), rows, " x ", cols, " in ",
                raw.size(), " bytes");
  const std::int64_t num_groups = rows * cols / group;
  bool is_symmetric = true;
  for (std::int64_t i = 0; i < num_groups && is_symmetric; ++i)
    is_symmetric = u16_at(raw.data() + i * group_bytes + 2) == kEight;
  FileBlocks blocks{.dtype = is_symmetric ? DType::q4_0 : DType::q4_1, .bytes = {}};
  const std::int64_t block_bytes = dtype_info(blocks.dtype).block_bytes;
  blocks.bytes = AlignedBuffer(static_cast<std::size_t>(rows * cols / kBlock * block_bytes));
  pool.parallel_for(rows, [&](std::int64_t row, int) {
    for (std::int64_t column = 0; column < cols; column += kBlock) {
      const std::byte* from = raw.data() + (row * cols + column) / group * group_bytes;
      std::byte* to = blocks.bytes.data() + (row * cols + column) / kBlock * block_bytes;
      std::memcpy(to, from, 2);
      if (!is_symmetric) {
        const std::uint16_t offset = f32_to_f16(-f16_to_f32(u16_at(from)) * f16_to_f32(u16_at(from + 2)));
        std::memcpy(to + 2, &offset, sizeof offset);
      }
      store_halves(from + kGroupHeader + column % group / 2, to + (is_symmetric ? 2 : 4));
    }
  });
  return blocks;
}

}  // namespace minisgl
