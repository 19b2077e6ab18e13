// Memory of a device and the matrices that lie in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "core/dtype.h"
#include "core/error.h"

namespace minisgl {

// Move-only memory of whatever device allocated it (Hardware::allocate), aligned to at least 64 bytes. On the CPU it
// can be read and written through data().
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(std::shared_ptr<std::byte> data, std::size_t size) : data_(std::move(data)), size_(size) {}
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::move(other.data_)), size_(std::exchange(other.size_, std::size_t{0})) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    data_ = std::move(other.data_);
    size_ = std::exchange(other.size_, std::size_t{0});
    return *this;
  }

  std::byte* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  std::shared_ptr<std::byte> data_;
  std::size_t size_ = 0;
};

// How often a buffer was written to, for readers that must notice a change. The buffer's owner keeps the count.
using WriteCount = std::uint64_t;

// A row-major matrix without gaps, somewhere in a device's memory. A view: it owns nothing.
struct Tensor {
  std::byte* data = nullptr;
  DType dtype = DType::f32;  // f32, f16 or bf16
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  WriteCount* writes = nullptr;  // the count of its buffer; null: writes are not counted

  std::int64_t nbytes() const { return rows * row_bytes(dtype, cols); }
  float* f32() const {
    MINISGL_CHECK(dtype == DType::f32, "a tensor of ", dtype_info(dtype).name);
    return reinterpret_cast<float*>(data);
  }
};

// A tensor that an operation writes. Passing one as such counts the write.
struct OutputTensor : Tensor {
  OutputTensor(Tensor tensor) : Tensor(tensor) {  // NOLINT: callers pass tensors
    if (writes != nullptr) ++*writes;
  }
};

}  // namespace minisgl
