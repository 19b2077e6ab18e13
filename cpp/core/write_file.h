// Writing to an open file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace minisgl {

// All bytes, from `offset` of the file on. False where the system refuses, with errno saying why; some may be written.
bool write_file(int file, std::span<const std::byte> bytes, std::int64_t offset);

}  // namespace minisgl
