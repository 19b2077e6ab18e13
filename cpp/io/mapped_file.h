// A whole file mapped read-only into memory, unmapped with its owner.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>

namespace minisgl {

class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // throws InputError: missing, unreadable, not a regular file
  MappedFile(MappedFile&& other) noexcept
      : path_(std::move(other.path_)),
        identity_(std::move(other.identity_)),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(identity_, other.identity_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }
  // Its path, device, inode, size and the time of its last change, as it was opened.
  const std::string& identity() const { return identity_; }

 private:
  std::string path_, identity_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Drops the resident pages that lie wholly inside `bytes`, a part of a MappedFile: they are read again from the file
// when touched. Lets a loader keep one copy of the weights in memory, not two.
void release_pages(std::span<const std::byte> bytes);

// Few of these bytes will be read, here and there: the kernel needn't read ahead.
void expect_sparse_reads(std::span<const std::byte> bytes);

}  // namespace minisgl
