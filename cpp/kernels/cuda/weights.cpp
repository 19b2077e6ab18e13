#include "kernels/cuda/weights.h"

#include <span>

#include "core/cuda/runtime.h"
#include "core/error.h"

namespace minisgl::cuda {

std::unique_ptr<const DeviceLinear> join_projections(const std::vector<Projection>& outputs, Uploader& uploader,
                                                     cudaStream_t stream) {
  std::int64_t rows = 0;
  bool any_bias = false;
  for (const Projection& output : outputs) {
    MINISGL_CHECK(output.weight->cols() == outputs.front().weight->cols());
    MINISGL_CHECK(output.bias.empty() || std::ssize(output.bias) == output.weight->rows());
    rows += output.weight->rows();
    any_bias = any_bias || !output.bias.empty();
  }
  DeviceBuffer bias;
  if (any_bias) {
    std::vector<float> merged;
    for (const Projection& output : outputs) {
      merged.insert(merged.end(), output.bias.begin(), output.bias.end());
      merged.resize(merged.size() + (output.bias.empty() ? static_cast<std::size_t>(output.weight->rows()) : 0), 0.0f);
    }
    bias = allocate_on_device(merged.size() * sizeof(float));
    uploader.upload(std::as_bytes(std::span(merged)), bias.data());
  }
  if (outputs.size() == 1) {
    return std::make_unique<const DeviceLinear>(std::static_pointer_cast<const DeviceMatrix>(outputs.front().weight),
                                                std::move(bias));
  }
  auto merged = std::make_shared<DeviceMatrix>(rows, outputs.front().weight->cols());
  std::byte* next = merged->data();
  for (const Projection& output : outputs) {
    const auto& part = static_cast<const DeviceMatrix&>(*output.weight);
    MINISGL_CUDA_CHECK(cudaMemcpyAsync(next, part.data(), part.nbytes(), cudaMemcpyDeviceToDevice, stream));
    next += part.nbytes();
  }
  return std::make_unique<const DeviceLinear>(std::move(merged), std::move(bias));
}

}  // namespace minisgl::cuda
