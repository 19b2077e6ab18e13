// XXH64, a hash that other programs compute the same (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace minisgl {

// Of the bytes in a little-endian machine's order.
std::uint64_t xxh64(std::span<const std::byte> bytes, std::uint64_t seed);

}  // namespace minisgl
