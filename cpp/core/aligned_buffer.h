// Move-only memory, zeroed and aligned to 64 bytes, straight from the kernel when large: untouched pages cost nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace minisgl {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t size);  // throws std::bad_alloc
  // A file's bytes from `offset` on, a multiple of the page size. They may be read only. Throws std::bad_alloc.
  static AlignedBuffer of_file(int file, std::int64_t offset, std::size_t size);
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~AlignedBuffer();

  // Makes room for `size` bytes; contents are not kept when it has to grow.
  void reserve(std::size_t size) {
    if (size > size_) *this = AlignedBuffer(size);
  }

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace minisgl
