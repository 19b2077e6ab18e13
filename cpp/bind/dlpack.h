// The exchange structure of the DLPack protocol (version 0.x, the capsule named "dltensor"), as its specification lays
// it out in memory: how tensors of any framework reach the native module without linking to that framework.
#pragma once

#include <cstdint>

namespace minisgl::dlpack {

inline constexpr std::int32_t kCpu = 1;  // device types
inline constexpr std::int32_t kCuda = 2;

inline constexpr std::uint8_t kUnsigned = 1;  // type codes
inline constexpr std::uint8_t kFloat = 2;
inline constexpr std::uint8_t kBfloat = 4;

struct Device {
  std::int32_t type;
  std::int32_t ordinal;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t num_dims;
  DataType dtype;
  std::int64_t* shape;    // [num_dims]
  std::int64_t* strides;  // [num_dims], in elements; null: row-major and dense
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* manager_context;
  void (*deleter)(ManagedTensor* self);
};

}  // namespace minisgl::dlpack
