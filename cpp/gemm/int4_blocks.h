// Groups of int4 checkpoints as blocks that the CPU's kernels have.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/aligned_buffer.h"
#include "core/dtype.h"
#include "core/thread_pool.h"

namespace minisgl {

struct FileBlocks {
  DType
      dtype;  // q4_0, which is exact, where all zeros are 8; else q4_1, whose offset, -scale * zero, is rounded to f16
  AlignedBuffer bytes;
};

// `raw` [rows, cols] of int4_64 or int4_128.
FileBlocks int4_as_blocks(DType dtype, std::int64_t rows, std::int64_t cols, std::span<const std::byte> raw,
                          ThreadPool& pool);

}  // namespace minisgl
