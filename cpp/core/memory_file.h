// Memory that lies in a file: where memory is short, the system gives up its pages and reads them again.
#pragma once

#include <cstdint>
#include <string>

#include "core/aligned_buffer.h"

namespace minisgl {

class MemoryFile {
 public:
  // A file without a name in `folder`, which goes with the last memory in it. Throws InputError where none can be made.
  explicit MemoryFile(const std::string& folder);
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  ~MemoryFile();

  // The same bytes in the file, to be read only. Throws InputError where the folder has no room.
  AlignedBuffer store(const AlignedBuffer& memory);

  const std::string& folder() const { return folder_; }
  std::int64_t free_bytes() const;  // of the folder

 private:
  std::string folder_;
  int file_ = -1;
  std::int64_t size_ = 0;
};

// Begins to read stored bytes whose first page isn't in memory: all at once, and not as they are needed.
void fetch_absent(const std::byte* stored, std::size_t size);

}  // namespace minisgl
