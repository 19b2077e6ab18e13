// Mapping of files through POSIX calls.
#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>

#include "core/error.h"

namespace minisgl {
namespace {

// Closes the descriptor: a mapping outlives it.
struct Descriptor {
  int value;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
};

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  // O_NONBLOCK: opening a named pipe must not wait for its writer.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.value < 0) throw InputError(concat("cannot open '", path, "': ", std::strerror(errno)));
  struct stat status{};
  if (::fstat(file.value, &status) != 0) throw InputError(concat("cannot read '", path, "': ", std::strerror(errno)));
  if (!S_ISREG(status.st_mode)) throw InputError(concat("'", path, "' is not a regular file"));
  size_ = static_cast<std::size_t>(status.st_size);
  identity_ = concat(std::filesystem::absolute(path).string(), " ", status.st_dev, " ", status.st_ino, " ",
                     status.st_size, " ", status.st_ctim.tv_sec, ".", status.st_ctim.tv_nsec);
  if (size_ == 0) return;  // an empty mapping is an error to the kernel
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.value, 0);
  if (address == MAP_FAILED) throw InputError(concat("cannot map '", path, "' into memory: ", std::strerror(errno)));
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void release_pages(std::span<const std::byte> bytes) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<std::uintptr_t>(bytes.data());
  const std::uintptr_t begin = (address + page - 1) / page * page;
  const std::uintptr_t end = (address + bytes.size()) / page * page;
  // Advice only: when the kernel refuses, the pages stay resident and nothing else changes.
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void expect_sparse_reads(std::span<const std::byte> bytes) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<std::uintptr_t>(bytes.data());
  const std::uintptr_t begin = address / page * page;
  // Advice only, as above.
  ::madvise(reinterpret_cast<void*>(begin), address + bytes.size() - begin, MADV_RANDOM);
}

}  // namespace minisgl
