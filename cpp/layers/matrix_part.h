// A rank's part of a matrix, out of the bytes of the whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/aligned_buffer.h"
#include "core/dtype.h"
#include "core/thread_pool.h"
#include "layers/sharding.h"

namespace minisgl {

// Row-major [rows, cols] as a file stores it.
struct MatrixBytes {
  DType dtype;
  std::int64_t rows;
  std::int64_t cols;
  std::span<const std::byte> bytes;
};

struct MatrixPart {
  std::int64_t rows;
  std::int64_t cols;
  std::span<const std::byte> bytes;  // [rows, cols], in the whole or in `staging`
  std::span<const std::byte> read;   // the piece of the whole that holds what was read
  AlignedBuffer staging = {};
};

// The rows, or the columns, that `slice` names. Rows of the whole are used where they lie; rows past its last are
// zeros; columns are copied out, and their cuts lie between the blocks of the format. Nothing but the slice is read.
MatrixPart take_part(const MatrixBytes& whole, Cut cut, const Slice& slice, ThreadPool& pool);

}  // namespace minisgl
