// From the bytes of a file to weights in a device's own layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "gemm/scaled_bytes.h"
#include "gemm/weights.h"

namespace minisgl {

class WeightMaker {
 public:
  virtual ~WeightMaker() = default;
  // `raw` is row-major [rows, cols] in `dtype` as a file stores it, aligned to 4 bytes; it isn't needed afterwards.
  virtual std::shared_ptr<const Matrix> make_matrix(DType dtype, std::int64_t rows, std::int64_t cols,
                                                    std::span<const std::byte> raw) = 0;
  // Whether products are computed of e4m3 of so many columns with scales of such blocks; else the caller widens them.
  virtual bool keeps_e4m3(std::int64_t /*cols*/, std::int64_t /*block_rows*/, std::int64_t /*block_cols*/) const {
    return false;
  }
  // Bytes of e4m3, row-major [rows, cols], where keeps_e4m3().
  virtual std::shared_ptr<const Matrix> make_scaled_matrix(std::int64_t /*rows*/, std::int64_t /*cols*/,
                                                           std::span<const std::byte> /*raw*/,
                                                           const ScaleGrid& /*scales*/) {
    return nullptr;
  }
  // The matrix as e4m3 with a scale for each row, as far as keeps_e4m3(); else as it is.
  virtual std::shared_ptr<const Matrix> quantized(std::shared_ptr<const Matrix> matrix) { return matrix; }
  // A matrix for measuring: small numbers of a fixed random stream.
  virtual std::shared_ptr<const Matrix> make_random_matrix(std::int64_t rows, std::int64_t cols) = 0;
  // The projections as one layer; all have the same number of input features.
  virtual std::unique_ptr<const Linear> make_linear(std::vector<Projection> outputs) = 0;
};

}  // namespace minisgl
