// The CPU as a device.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "kernels/device.h"

namespace minisgl {

// f32 activations; products with quantised weights quantise their input (gemm/gemm.h).
// `comm` makes it one of several ranks; null: it is alone.
std::unique_ptr<Device> make_cpu_device(int num_threads, std::shared_ptr<Communicator> comm = nullptr);

}  // namespace minisgl
