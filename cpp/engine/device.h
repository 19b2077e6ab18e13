// From a name to a device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "comm/communicator.h"
#include "kernels/device.h"

namespace minisgl {

// "cpu", "cuda", or "auto": the first GPU where there is one. num_threads of the host; 0: all that this process may
// use. With `comm` it is one of several ranks, on the GPU that the communicator is on. What a GPU measures of
// itself is kept in `cache_folder`; empty: nowhere. deterministic: as make_cuda_device() has it; a CPU is in any case,
// where its communicator is. expert_folder: as make_cpu_device() has it; a GPU takes none. Throws InputError.
std::unique_ptr<Device> make_device(const std::string& name, std::int64_t num_threads,
                                    std::shared_ptr<Communicator> comm = nullptr, const std::string& cache_folder = "",
                                    bool deterministic = false, const std::string& expert_folder = "");

}  // namespace minisgl
