#include "kernels/cuda/weights.h"

#include <algorithm>
#include <span>

#include "core/cuda/runtime.h"
#include "core/error.h"
#include "gemm/cuda/launch.h"
#include "gemm/cuda/quantised.h"

namespace minisgl::cuda {
namespace {

// Whether the matrices' bytes, one after the other, are their rows as one matrix that products take.
bool can_be_joined(const std::vector<std::shared_ptr<const DeviceMatrix>>& parts) {
  return std::ranges::all_of(parts, [&](const auto& part) {
    if (part->format() != parts.front()->format()) return false;
    const bool is_alone = parts.size() == 1;
    if (is_quantised(part->format())) return is_alone || part->rows() % kUnitRows == 0;
    switch (part->format()) {
      case WeightFormat::e4m3_rows: return part->rows() % 4 == 0;
      case WeightFormat::e4m3_blocks: return part->rows() % (is_alone ? 4 : kScaleBlock) == 0;
      default: return true;
    }
  });
}
// Whether all can have the bytes of q8_offset_16, with the values that they have.
bool can_be_bytes(const std::vector<std::shared_ptr<const DeviceMatrix>>& parts) {
  return std::ranges::all_of(parts, [&](const auto& part) {
    return is_quantised(part->format()) && part->format() != WeightFormat::q4_zero_64 &&
           part->format() != WeightFormat::q4_zero_128 && part->rows() % kUnitRows == 0;
  });
}
std::shared_ptr<const DeviceMatrix> in_bytes(const std::shared_ptr<const DeviceMatrix>& matrix, cudaStream_t stream) {
  auto wide = std::make_shared<DeviceMatrix>(WeightFormat::q8_offset_16, matrix->rows(), matrix->cols());
  widen_to_bytes(matrix->view(), matrix->rows(), matrix->cols(), wide->data(), stream);
  return wide;
}

}  // namespace

DType DeviceMatrix::dtype() const {
  switch (format_) {
    case WeightFormat::bf16: return DType::bf16;
    case WeightFormat::e4m3_rows:
    case WeightFormat::e4m3_blocks: return DType::f8e4m3;
    case WeightFormat::q4_offset_32: return DType::q4_1;
    case WeightFormat::q4_zero_64: return DType::int4_64;
    case WeightFormat::q4_zero_128: return DType::int4_128;
    case WeightFormat::q5_offset_32: return DType::q5_1;
    case WeightFormat::q6_middle_16: return DType::q6_k;
    case WeightFormat::q8_middle_32:
    case WeightFormat::q8_offset_16: return DType::q8_0;
  }
  return DType::bf16;
}

std::shared_ptr<const DeviceMatrix> in_bf16(std::shared_ptr<const DeviceMatrix> matrix, cudaStream_t stream) {
  if (matrix->format() == WeightFormat::bf16) return matrix;
  auto plain = std::make_shared<DeviceMatrix>(WeightFormat::bf16, matrix->rows(), matrix->cols());
  widen_weights(matrix->view(), matrix->rows(), matrix->cols(), plain->data(), stream);
  return plain;
}

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
  std::vector<std::shared_ptr<const DeviceMatrix>> parts;
  for (const Projection& output : outputs) parts.push_back(std::static_pointer_cast<const DeviceMatrix>(output.weight));
  if (!can_be_joined(parts) && can_be_bytes(parts)) {
    for (auto& part : parts) part = in_bytes(part, stream);
  } else if (!can_be_joined(parts)) {
    for (auto& part : parts) part = in_bf16(std::move(part), stream);
  }
  if (parts.size() == 1) return std::make_unique<const DeviceLinear>(std::move(parts.front()), std::move(bias));
  auto merged = std::make_shared<DeviceMatrix>(parts.front()->format(), rows, parts.front()->cols());
  std::byte *data = merged->data(), *scales = merged->scales();
  const auto append = [&](std::byte*& to, const std::byte* from, std::size_t bytes) {
    if (bytes > 0) MINISGL_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
    to += bytes;
  };
  for (const auto& part : parts) {
    append(data, part->data(), weight_bytes(part->format(), part->rows(), part->cols()));
    append(scales, part->scales(), scale_bytes(part->format(), part->rows(), part->cols()));
  }
  return std::make_unique<const DeviceLinear>(std::move(merged), std::move(bias));
}

}  // namespace minisgl::cuda
