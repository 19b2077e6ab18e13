// A product of zeros that stays in the caches takes as long as any other of many rows. Few rows aren't tried: their
// products wait for weights, which is seen in whole models alone, where 16 rows took up to a third longer by tiles.
#include "gemm/row_choice.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <span>

#include "core/aligned_buffer.h"
#include "gemm/block_codec.h"
#include "gemm/dispatch.h"

namespace minisgl {
namespace {

constexpr std::int64_t outputs = 128, cols = 1024;
constexpr std::int64_t tried_rows[] = {256, 128};
constexpr int repeats = 3;

class Product {
 public:
  explicit Product(DType dtype)
      : weights_(static_cast<std::size_t>(packed_group_bytes(dtype, cols) * outputs / group_rows)),
        activations_(static_cast<std::size_t>(tried_rows[0] * cols / 32) * sizeof(ActivationBlock)),
        y_(static_cast<std::size_t>(tried_rows[0] * outputs) * sizeof(float)) {}

  double seconds(const Kernel& kernel, std::int64_t num_rows) {
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < repeats; ++i) {
      const auto start = std::chrono::steady_clock::now();
      kernel.run({.weights = weights_.data(),
                  .cols = cols,
                  .num_outputs = outputs,
                  .bias = nullptr,
                  .activations = activations_.data(),
                  .activation_stride = cols / 32 * static_cast<std::int64_t>(sizeof(ActivationBlock)),
                  .num_rows = num_rows,
                  .y = y_.as<float>(),
                  .y_stride = outputs});
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return best;
  }

 private:
  AlignedBuffer weights_, activations_, y_;  // zeros
};

}  // namespace

std::vector<Kernel> choose_by_rows(const KernelTable& base, const MoreKernels& more) {
  std::vector<Kernel> chosen;
  for (Kernel kernel : std::span(more.kernels, static_cast<std::size_t>(more.num_kernels))) {
    Product product(kernel.dtype);
    kernel.min_rows = std::numeric_limits<std::int64_t>::max();
    for (const std::int64_t rows : tried_rows) {
      if (product.seconds(kernel, rows) >= product.seconds(find_gemm_kernel(base, kernel.dtype, rows), rows)) break;
      kernel.min_rows = rows;
    }
    if (kernel.min_rows <= tried_rows[0]) chosen.push_back(kernel);
  }
  return chosen;
}

}  // namespace minisgl
