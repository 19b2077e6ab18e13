// The calling thread's device while another one works.
#pragma once

#include "core/cuda/runtime.h"

namespace minisgl {

// Makes `device` the calling thread's device and puts the old one back.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    MINISGL_CUDA_CHECK(cudaGetDevice(&previous_));
    MINISGL_CUDA_CHECK(cudaSetDevice(device));
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

}  // namespace minisgl
