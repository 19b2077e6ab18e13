// Our memory as tensors of any framework, lent to Python through DLPack.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "core/dtype.h"

namespace minisgl {

// [count] of dtype, or bytes, as a capsule without a copy. The memory must outlive what is made of it. device: the GPU
// that it is on; -1: the host.
pybind11::capsule lend_tensor(void* data, std::int64_t count, DType dtype, int device);
pybind11::capsule lend_bytes(void* data, std::int64_t num_bytes, int device);

}  // namespace minisgl
