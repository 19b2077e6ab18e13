// One NVIDIA GPU as a device. kernels/cuda/ implements it, kernels/no_cuda/ stands in for it in a build without CUDA.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "comm/communicator.h"
#include "kernels/device.h"

namespace minisgl {

// The bus address of a GPU, as "0000:3b:00.0"; empty where it isn't known.
std::string cuda_pci_id(int device_index);

// bf16 activations; weights in bf16, or on compute capability 9.0 in e4m3 and in 4 to 8 bits as files have them
// (gemm/cuda/weight_format.h; other formats are converted when they are loaded); f32 sums and logits, a cache of bf16,
// f16 or e4m3. Needs compute capability 8.0. Throws InputError where that GPU or cuBLAS can't be used. `comm`, on the
// same GPU, makes it one of several ranks; null: it is alone. What is measured of the GPU is kept in `cache_folder`;
// empty: nowhere.
//
// deterministic: a row's bits depend on its own sequence alone, not on what else is in the step nor on how the sequence
// was cut into steps, and nothing is chosen by measuring. Needs compute capability 9.0, and a communicator
// that sums by rank. Weights of 4 to 8 bits become bf16.
std::unique_ptr<Device> make_cuda_device(int device_index, int num_threads,
                                         std::shared_ptr<Communicator> comm = nullptr,
                                         const std::string& cache_folder = "", bool deterministic = false);

}  // namespace minisgl
