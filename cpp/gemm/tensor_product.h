// Products on tensors that somebody else owns: y = x · Wᵀ (+ bias) on a GPU, of one plain dtype, without a copy or a
// packed form. In a build without CUDA make_gpu_products throws InputError.
#pragma once

#include <cstdint>
#include <memory>

#include "core/dtype.h"

namespace minisgl {

// All memory is the device's, contiguous, and aligned to its elements; y overlaps none of the others.
struct TensorProduct {
  const void* weights;  // [outputs, inputs]
  const void* bias;     // [outputs] or null
  const void* x;        // [rows, inputs]
  void* y;              // [rows, outputs]
  DType dtype;          // of all four: f32, bf16 or f16
  std::int64_t rows, outputs, inputs;
};

// Sums are f32, of f32 values too (no TF32). What is 16 bits wide may also be rounded to its dtype before the bias is
// added, and where the input dimension is cut. A product without rows or outputs does nothing; one without inputs gives
// the bias, or zeros.
class GpuProducts {
 public:
  virtual ~GpuProducts() = default;
  // Queues the product on `stream`: a cudaStream_t of this GPU, 0 for the default stream. The first product of a shape
  // outside of a graph's capture measures which kernel is the fastest, with y as its scratch, and waits for the GPU;
  // all others only launch, and in a capture nothing is measured or waited for. Any thread may call it for any stream
  // at any time. Concurrent streams and graphs share no memory: where the kernel needs a workspace, a stream keeps one
  // of 32 MB as long as this object lives, and a graph one until it is destroyed. This object outlives the replays of
  // graphs that captured it. Throws InputError for another dtype, and a size below 0 or above 2^31 - 1.
  virtual void run(const TensorProduct& product, std::uintptr_t stream) = 0;
};

// The products of the GPU with this ordinal. Throws InputError where there is no such GPU, no cuBLASLt, or no CUDA in
// this build.
std::unique_ptr<GpuProducts> make_gpu_products(int device);

}  // namespace minisgl
