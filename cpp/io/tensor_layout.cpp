// How many bytes a tensor takes, computed from numbers that a file claims and nobody has checked.
#include "io/tensor_layout.h"

namespace minisgl {

std::optional<std::int64_t> tensor_bytes(std::span<const std::int64_t> shape, std::int64_t block_size,
                                         std::int64_t block_bytes) {
  const std::int64_t last = shape.empty() ? 1 : shape.back();
  if (last < 0 || last % block_size != 0) return std::nullopt;
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(last / block_size, block_bytes, &bytes)) return std::nullopt;
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) {
    if (shape[i] < 0 || __builtin_mul_overflow(bytes, shape[i], &bytes)) return std::nullopt;
  }
  return bytes;
}

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace minisgl
