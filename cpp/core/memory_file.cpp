// Bytes are written, not stored to a mapping: a full disk is then an error, not a signal.
#include "core/memory_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "core/write_file.h"

namespace minisgl {
namespace {

[[noreturn]] void refuse(const std::string& folder, const std::string& what) {
  throw InputError(concat("--expert-folder '", folder, "': ", what));
}

}  // namespace

MemoryFile::MemoryFile(const std::string& folder) : folder_(folder) {
  struct statfs status{};
  if (::statfs(folder.c_str(), &status) != 0) refuse(folder, std::strerror(errno));
  if (status.f_type == TMPFS_MAGIC) refuse(folder, "is in memory itself (tmpfs): use a folder on a disk");
  std::string path = folder + "/minisgl-experts-XXXXXX";
  file_ = ::mkostemp(path.data(), O_CLOEXEC);
  if (file_ < 0) refuse(folder, concat("can't make a file there: ", std::strerror(errno)));
  ::unlink(path.c_str());
}

MemoryFile::~MemoryFile() {
  ::close(file_);
}

AlignedBuffer MemoryFile::store(const AlignedBuffer& memory) {
  const auto size = static_cast<std::int64_t>(memory.size());
  if (!write_file(file_, {memory.data(), memory.size()}, size_))
    refuse(folder_, concat("can't keep ", size, " bytes more: ", std::strerror(errno)));
  AlignedBuffer stored = AlignedBuffer::of_file(file_, size_, memory.size());
  const std::int64_t page = ::sysconf(_SC_PAGESIZE);
  size_ += (size + page - 1) / page * page;  // where a mapping may begin
  return stored;
}

std::int64_t MemoryFile::free_bytes() const {
  struct statfs status{};
  if (::fstatfs(file_, &status) != 0) return 0;
  return static_cast<std::int64_t>(status.f_bavail) * static_cast<std::int64_t>(status.f_bsize);
}

void fetch_absent(const std::byte* stored, std::size_t size) {
  void* const address = const_cast<std::byte*>(stored);
  unsigned char is_present = 0;
  if (::mincore(address, 1, &is_present) != 0 || (is_present & 1) != 0) return;
  ::madvise(address, size, MADV_WILLNEED);  // advice only: refused, bytes are read as they are needed
}

}  // namespace minisgl
