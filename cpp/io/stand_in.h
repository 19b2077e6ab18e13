// What lies in a file's place when a download went wrong.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace minisgl {

// Throws InputError, which names `name` and the way out, when `bytes` are a Git LFS pointer or an HTML page.
void refuse_stand_in(std::span<const std::byte> bytes, const std::string& name);

}  // namespace minisgl
