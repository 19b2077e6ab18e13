// How many bytes a tensor takes, computed from numbers that a file claims and nobody has checked.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace minisgl {

// Bytes of a row-major tensor whose last dimension is stored in blocks of `block_size` elements and `block_bytes`
// bytes. Nothing when a dimension is negative, the last one is not whole blocks, or the product leaves 63 bits.
std::optional<std::int64_t> tensor_bytes(std::span<const std::int64_t> shape, std::int64_t block_size,
                                         std::int64_t block_bytes);

// "[576, 49152]"
std::string shape_text(std::span<const std::int64_t> shape);

}  // namespace minisgl
