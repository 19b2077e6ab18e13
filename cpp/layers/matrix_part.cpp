// Cutting matrices by rows and by columns.
#include "layers/matrix_part.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace minisgl {
namespace {

MatrixPart take_rows(const MatrixBytes& whole, const Slice& slice) {
  const std::int64_t stride = row_bytes(whole.dtype, whole.cols);
  const std::int64_t first = std::min(slice.first, whole.rows);
  const std::int64_t present = std::min(slice.count, whole.rows - first);
  const auto read =
      whole.bytes.subspan(static_cast<std::size_t>(first * stride), static_cast<std::size_t>(present * stride));
  MatrixPart part{.rows = slice.count, .cols = whole.cols, .bytes = read, .read = read};
  if (present == slice.count) return part;
  part.staging = AlignedBuffer(static_cast<std::size_t>(slice.count * stride));  // zero bytes are zeros in every format
  if (present > 0) std::memcpy(part.staging.data(), read.data(), read.size());
  part.bytes = {part.staging.data(), part.staging.size()};
  return part;
}

MatrixPart take_columns(const MatrixBytes& whole, const Slice& slice, ThreadPool& pool) {
  if (slice.count == whole.cols) return take_rows(whole, {0, whole.rows});
  const std::int64_t block_size = dtype_info(whole.dtype).block_size;
  MINISGL_CHECK(slice.first % block_size == 0 && slice.count % block_size == 0, "columns ", slice.first, " to ",
                slice.first + slice.count, " in blocks of ", block_size);
  const std::int64_t stride = row_bytes(whole.dtype, whole.cols), offset = row_bytes(whole.dtype, slice.first);
  const auto size = static_cast<std::size_t>(row_bytes(whole.dtype, slice.count));
  MatrixPart part{.rows = whole.rows,
                  .cols = slice.count,
                  .bytes = {},
                  .read = whole.bytes,
                  .staging = AlignedBuffer(static_cast<std::size_t>(whole.rows) * size)};
  pool.parallel_for(whole.rows, [&](std::int64_t row, int) {
    std::memcpy(part.staging.data() + static_cast<std::size_t>(row) * size, whole.bytes.data() + row * stride + offset,
                size);
  });
  part.bytes = {part.staging.data(), part.staging.size()};
  return part;
}

}  // namespace

MatrixPart take_part(const MatrixBytes& whole, Cut cut, const Slice& slice, ThreadPool& pool) {
  return cut == Cut::rows ? take_rows(whole, slice) : take_columns(whole, slice, pool);
}

}  // namespace minisgl
