// Comparing secrets.
#pragma once

#include <array>
#include <cstddef>

namespace minisgl {

// Whether they are equal, in a time that doesn't depend on where they differ.
template <typename Byte, std::size_t size>
bool equal_in_constant_time(const std::array<Byte, size>& a, const std::array<Byte, size>& b) {
  static_assert(sizeof(Byte) == 1);
  unsigned difference = 0;
  for (std::size_t i = 0; i < size; ++i) difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

}  // namespace minisgl
