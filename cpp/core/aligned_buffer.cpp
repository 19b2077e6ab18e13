#include "core/aligned_buffer.h"

#include <sys/mman.h>

#include <new>

namespace minisgl {

AlignedBuffer::AlignedBuffer(std::size_t size) {
  if (size == 0) return;
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<std::byte*>(memory);
  size_ = size;
}

AlignedBuffer AlignedBuffer::of_file(int file, std::int64_t offset, std::size_t size) {
  AlignedBuffer buffer;
  if (size == 0) return buffer;
  void* memory = mmap(nullptr, size, PROT_READ, MAP_SHARED, file, offset);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  buffer.data_ = static_cast<std::byte*>(memory);
  buffer.size_ = size;
  return buffer;
}

AlignedBuffer::~AlignedBuffer() {
  if (data_) munmap(data_, size_);
}

}  // namespace minisgl
