// The CPU as a device.
#pragma once

#include <memory>
#include <string>

#include "comm/communicator.h"
#include "kernels/device.h"

namespace minisgl {

// f32 activations; products with quantised weights quantise their input (gemm/gemm.h).
// `comm` makes it one of several ranks; null: it is alone. Experts lie in a file in `expert_folder`; empty: in memory.
std::unique_ptr<Device> make_cpu_device(int num_threads, std::shared_ptr<Communicator> comm = nullptr,
                                        const std::string& expert_folder = "");

}  // namespace minisgl
