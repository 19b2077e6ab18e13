// The exchange structures of the DLPack protocol, as its specification lays them out in memory: how tensors of any
// framework reach the native module without linking to that framework. The capsule named "dltensor" (version 0.x),
// which every framework has, and the table of functions (version 1.2 and later, `__dlpack_c_exchange_api__` of a
// tensor's type), which spares Python's calls.
#pragma once

#include <cstdint>

namespace minisgl::dlpack {

inline constexpr std::int32_t kCpu = 1;  // device types
inline constexpr std::int32_t kCuda = 2;
inline constexpr std::int32_t kCudaHost = 3;  // the host's memory, pinned

inline constexpr std::uint8_t kInt = 0;  // type codes
inline constexpr std::uint8_t kUnsigned = 1;
inline constexpr std::uint8_t kFloat = 2;
inline constexpr std::uint8_t kBfloat = 4;
inline constexpr std::uint8_t kComplex = 5;
inline constexpr std::uint8_t kBool = 6;

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

// Tables of one major version have one layout.
inline constexpr std::uint32_t kMajorVersion = 1;

struct ExchangeHeader {
  std::uint32_t major;
  std::uint32_t minor;
  const ExchangeHeader* older;  // the same functions in an older major version, or null
};

// Functions return 0, or -1 with a Python exception set; all under the GIL.
struct Exchange {
  ExchangeHeader header;
  void (*allocate)();  // this and the next two aren't used here
  void (*to_managed)();
  void (*from_managed)();
  // Fills in `out`, whose shape and strides are the tensor's own, for as long as nobody changes it. May be null.
  int (*borrow)(void* tensor, Tensor* out);
  int (*current_stream)(std::int32_t device_type, std::int32_t ordinal, void** stream);
};

}  // namespace minisgl::dlpack
