// A weight matrix in the layout that this processor's kernels read. Made once at load, read only afterwards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>

#include "core/aligned_buffer.h"
#include "core/dtype.h"
#include "core/memory_file.h"
#include "core/thread_pool.h"
#include "gemm/weights.h"

namespace minisgl {

// A name for gemm/layout.h's layouts as they are now, for files that outlive the program. It changes with any of them,
// and with what is made of a file's tensors before they are packed.
inline constexpr std::string_view packed_layout = "layout 1";

class PackedMatrix final : public Matrix {
 public:
  PackedMatrix() = default;

  // `raw` is row-major [rows, cols] in `dtype` as a file stores it (row_bytes(dtype, cols) bytes per row).
  // The format stays what it was; only the order of blocks and fields changes. Any `rows`; `cols` a multiple of
  // the block size. Throws CheckError when `raw` has another size.
  static PackedMatrix pack(DType dtype, std::int64_t rows, std::int64_t cols, std::span<const std::byte> raw,
                           ThreadPool& pool);

  // The same again from its data() of an earlier time.
  static PackedMatrix packed(DType dtype, std::int64_t rows, std::int64_t cols, AlignedBuffer data);
  // Bytes of data(), for any rows and cols from a file. 0 where there are no such matrices.
  static std::int64_t packed_bytes(DType dtype, std::int64_t rows, std::int64_t cols);

  DType dtype() const override { return dtype_; }
  std::int64_t rows() const override { return rows_; }
  std::int64_t cols() const override { return cols_; }
  // From now on it lies in `file`, or in memory that has the same bytes.
  void move_to(MemoryFile& file) { data_ = file.store(data_); }
  void move_to(AlignedBuffer same) { data_ = std::move(same); }
  const std::byte* data() const { return data_.data(); }
  std::size_t nbytes() const override { return data_.size(); }

  // One row as f32 [cols], exactly the value that the format defines. For embedding look-ups.
  void dequantize_row(std::int64_t row, float* out) const;

 private:
  DType dtype_ = DType::f32;
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  AlignedBuffer data_;
};

}  // namespace minisgl
