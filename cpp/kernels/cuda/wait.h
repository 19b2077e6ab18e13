// Waiting for a GPU that may itself wait for other ranks.
#pragma once

#include "comm/communicator.h"
#include "core/cuda/runtime.h"

namespace minisgl::cuda {

// Runs `until`, which waits for the device and returns its error. `comm` watches the other ranks meanwhile; it is null
// where there are none.
template <typename Wait>
void wait_for_device(Communicator* comm, const Wait& until) {
  if (comm != nullptr) comm->begin_wait();
  const cudaError_t error = until();
  if (comm != nullptr) comm->end_wait();
  MINISGL_CUDA_CHECK(error);
}

}  // namespace minisgl::cuda
