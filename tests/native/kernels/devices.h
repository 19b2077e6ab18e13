// Every device that operations run on, for tests that hold them to one reference; and arrays in a device's memory.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/nccl.h"
#include "core/half.h"
#include "kernels/cpu/backend.h"
#include "kernels/cuda/backend.h"
#include "kernels/device.h"

namespace minisgl::testing_support {

enum class DeviceKind { cpu, cuda };

inline std::string device_label(DeviceKind kind) {
  return kind == DeviceKind::cpu ? "cpu" : "cuda";
}

// One device of each kind a process: making a CUDA device takes a while. Null where there is none.
inline Device* device_of(DeviceKind kind) {
  static const std::unique_ptr<Device> cpu = make_cpu_device(2);
  static const std::unique_ptr<Device> cuda = num_gpus() > 0 ? make_cuda_device(0, 2) : nullptr;
  return kind == DeviceKind::cpu ? cpu.get() : cuda.get();
}

#define MINISGL_SKIP_WITHOUT(kind) \
  if (::minisgl::testing_support::device_of(kind) == nullptr) GTEST_SKIP() << "no CUDA device"

inline float rounded(DType dtype, float value) {
  if (dtype == DType::bf16) return bf16_to_f32(f32_to_bf16(value));
  if (dtype == DType::f16) return f16_to_f32(f32_to_f16(value));
  return value;
}

inline std::vector<float> rounded(DType dtype, std::vector<float> values) {
  for (float& value : values) value = rounded(dtype, value);
  return values;
}

// Values as `dtype` stores them, row after row.
inline std::vector<std::byte> stored(DType dtype, std::span<const float> values) {
  std::vector<std::byte> bytes(values.size() * (dtype == DType::f32 ? 4 : 2));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::f32) {
      std::memcpy(&bytes[4 * i], &values[i], 4);
    } else {
      const std::uint16_t half = dtype == DType::bf16 ? f32_to_bf16(values[i]) : f32_to_f16(values[i]);
      std::memcpy(&bytes[2 * i], &half, 2);
    }
  }
  return bytes;
}

inline std::vector<float> loaded(DType dtype, std::span<const std::byte> bytes) {
  std::vector<float> values(bytes.size() / (dtype == DType::f32 ? 4 : 2));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::f32) {
      std::memcpy(&values[i], &bytes[4 * i], 4);
    } else {
      std::uint16_t half;
      std::memcpy(&half, &bytes[2 * i], 2);
      values[i] = dtype == DType::bf16 ? bf16_to_f32(half) : f16_to_f32(half);
    }
  }
  return values;
}

// A matrix in a device's memory. One without values is poisoned: NaN in every format.
class DeviceMatrix {
 public:
  DeviceMatrix(Device& device, DType dtype, std::int64_t rows, std::int64_t cols, std::span<const float> values = {})
      : device_(device), dtype_(dtype), rows_(rows), cols_(cols) {
    const auto size = static_cast<std::size_t>(rows * row_bytes(dtype, cols));
    buffer_ = device.allocate(size);
    device.upload(values.empty() ? std::vector<std::byte>(size, std::byte{0xff}) : stored(dtype, values),
                  buffer_.data());
  }
  Tensor view() const { return {buffer_.data(), dtype_, rows_, cols_, writes_.get()}; }
  const float* f32() const { return buffer_.as<float>(); }
  std::byte* data() const { return buffer_.data(); }
  std::vector<float> values() const {
    std::vector<std::byte> bytes(buffer_.size());
    device_.download(buffer_.data(), bytes);
    return loaded(dtype_, bytes);
  }

 private:
  Device& device_;
  DType dtype_;
  std::int64_t rows_, cols_;
  std::unique_ptr<WriteCount> writes_ = std::make_unique<WriteCount>(0);
  DeviceBuffer buffer_;
};

// ‖got − expected‖ / ‖expected‖; NaN where `got` has one.
inline double relative_error(std::span<const float> got, std::span<const double> expected) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (got[i] - expected[i]) * (got[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace minisgl::testing_support
