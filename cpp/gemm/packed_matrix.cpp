// Packing: groups of 8 rows, one group per task, each block taken apart and written to its lane.
#include "gemm/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/float_at.h"
#include "gemm/block_codec.h"
#include "gemm/layout.h"

namespace minisgl {
namespace {

// Where element (row, col) of a float format lies.
std::int64_t float_offset(DType dtype, std::int64_t cols, std::int64_t row, std::int64_t col) {
  const std::int64_t group_bytes = packed_group_bytes(dtype, cols), size = dtype_info(dtype).block_bytes;
  if (dtype != DType::bf16) return row / group_rows * group_bytes + (col * group_rows + row % group_rows) * size;
  constexpr std::int64_t rows = 2 * group_rows;
  return row / rows * 2 * group_bytes + (col / 2 * rows + row % rows) * bf16_pair_bytes + col % 2 * size;
}

std::int64_t num_groups(DType dtype, std::int64_t rows) {
  const std::int64_t groups = (rows + group_rows - 1) / group_rows;
  return dtype == DType::bf16 ? groups + groups % 2 : groups;
}

void pack_quantized_row(DType dtype, const std::byte* row, std::int64_t num_blocks, int lane, std::byte* group) {
  const std::int64_t file_bytes = dtype_info(dtype).block_bytes, packed_bytes = packed_block_bytes(dtype);
  QuantBlock block;
  for (std::int64_t i = 0; i < num_blocks; ++i) {
    unpack_file_block(dtype, row + i * file_bytes, block);
    write_packed_block(dtype, block, lane, group + i * packed_bytes);
  }
}

}  // namespace

std::int64_t PackedMatrix::packed_bytes(DType dtype, std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t most = std::int64_t{1} << 31;
  if (dtype > DType::mxfp4 || rows <= 0 || cols <= 0 || rows > most || cols > most) return 0;
  if (cols % dtype_info(dtype).block_size != 0) return 0;
  return num_groups(dtype, rows) * packed_group_bytes(dtype, cols);
}

PackedMatrix PackedMatrix::packed(DType dtype, std::int64_t rows, std::int64_t cols, AlignedBuffer data) {
  MINISGL_CHECK(static_cast<std::int64_t>(data.size()) == packed_bytes(dtype, rows, cols), data.size(),
                " bytes of a packed matrix of ", rows, " x ", cols);
  PackedMatrix matrix;
  matrix.dtype_ = dtype;
  matrix.rows_ = rows;
  matrix.cols_ = cols;
  matrix.data_ = std::move(data);
  return matrix;
}

PackedMatrix PackedMatrix::pack(DType dtype, std::int64_t rows, std::int64_t cols, std::span<const std::byte> raw,
                                ThreadPool& pool) {
  const DTypeInfo info = dtype_info(dtype);
  MINISGL_CHECK(rows >= 0 && cols >= 0, "got ", rows, " x ", cols);
  MINISGL_CHECK(cols % info.block_size == 0, info.name, " needs a multiple of ", info.block_size, " columns, got ",
                cols);
  const std::int64_t file_row_bytes = row_bytes(dtype, cols);
  MINISGL_CHECK(static_cast<std::int64_t>(raw.size()) == rows * file_row_bytes, rows, " x ", cols, " of ", info.name,
                " are ", rows * file_row_bytes, " bytes, got ", raw.size());

  const std::int64_t group_bytes = packed_group_bytes(dtype, cols), groups = num_groups(dtype, rows);
  PackedMatrix matrix;
  matrix.dtype_ = dtype;
  matrix.rows_ = rows;
  matrix.cols_ = cols;
  matrix.data_ = AlignedBuffer(static_cast<std::size_t>(groups * group_bytes));
  std::byte* packed = matrix.data_.data();
  pool.parallel_for(groups, [&](std::int64_t index, int) {
    for (std::int64_t row = index * group_rows; row < std::min(rows, (index + 1) * group_rows); ++row) {
      const std::byte* from = raw.data() + row * file_row_bytes;
      if (is_quantized(dtype)) {
        pack_quantized_row(dtype, from, cols / info.block_size, static_cast<int>(row % group_rows),
                           packed + index * group_bytes);
        continue;
      }
      for (std::int64_t col = 0; col < cols; ++col)
        std::memcpy(packed + float_offset(dtype, cols, row, col), from + col * info.block_bytes,
                    static_cast<std::size_t>(info.block_bytes));
    }
  });
  return matrix;
}

void PackedMatrix::dequantize_row(std::int64_t row, float* out) const {
  MINISGL_CHECK(row >= 0 && row < rows_, "row ", row, " of ", rows_);
  const DTypeInfo info = dtype_info(dtype_);
  if (!is_quantized(dtype_)) {
    for (std::int64_t col = 0; col < cols_; ++col)
      out[col] = float_at(dtype_, data() + float_offset(dtype_, cols_, row, col), 0);
    return;
  }
  const std::byte* group = data() + row / group_rows * packed_group_bytes(dtype_, cols_);
  QuantBlock block;
  for (std::int64_t i = 0; i < cols_ / info.block_size; ++i) {
    read_packed_block(dtype_, group + i * packed_block_bytes(dtype_), static_cast<int>(row % group_rows), block);
    dequantize_block(dtype_, block, out + i * info.block_size);
  }
}

}  // namespace minisgl
