// What this process may use of the machine: processors and memory, as the kernel, affinity and control groups (1 and 2)
// say.
#pragma once

#include <cstdint>
#include <string>

namespace minisgl {

// Processors that this process may run on, at least 1: its affinity mask, cut by the CPU quota of its control groups
// (rounded up). `root` is where /proc and /sys are looked for.
int usable_processors(const std::string& root = "");

// Bytes that can be allocated without swapping or being killed: the kernel's estimate (MemAvailable), cut by what the
// memory limits of its control groups leave (file cache counts as free).
std::int64_t available_memory(const std::string& root = "");

}  // namespace minisgl
