// What a model's matrices became on this machine, kept in a file: a later start maps it in place of packing them again,
// and processes that serve the same model share its memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>

#include "core/aligned_buffer.h"
#include "core/dtype.h"
#include "gemm/packed_matrix.h"
#include "gemm/weights.h"

namespace minisgl {

class KeptMatrices {
 public:
  // Opens what an earlier start kept; where there is nothing of it, what is put is kept. Where it can't be, as on a
  // full disk or in a folder that can't be written, a line in the log says so and all else is as without.
  explicit KeptMatrices(const KeepRequest& request);
  KeptMatrices(const KeptMatrices&) = delete;
  KeptMatrices& operator=(const KeptMatrices&) = delete;
  ~KeptMatrices();

  // What an earlier start put under this name, if it is such a matrix.
  std::optional<PackedMatrix> take(const std::string& name, std::int64_t rows, std::int64_t cols);
  // It lies in the file from now on, if it is kept. Each name comes once.
  void put(const std::string& name, PackedMatrix& matrix);
  // Nothing more comes. What was put gets its name in the folder, in a thread of its own, once the disk has it.
  void finish();

  bool is_reading() const { return reading_ >= 0; }
  std::int64_t mapped_bytes() const { return mapped_bytes_; }  // of matrices that lie in the file
  const std::filesystem::path& file() const { return file_; }

 private:
  struct Entry {
    DType dtype;
    std::int64_t rows, cols, offset, size;
  };
  bool open_kept(std::string& refusal);  // false: there is nothing, or `refusal` says why nothing can be
  void begin_file(const KeepRequest& request);
  bool lock();  // against other processes that write the same file
  void unlock();
  void give_up(const std::string& why);
  std::string trailer() const;
  void complete();  // in the thread

  std::filesystem::path file_;
  std::string title_;                               // the first lines of the file's end
  std::unordered_map<std::string, Entry> entries_;  // by name: those of the file that is read, or those so far
  int reading_ = -1, writing_ = -1, lock_ = -1;
  std::int64_t size_ = 0;  // of what was written
  std::int64_t mapped_bytes_ = 0;
  std::int64_t floor_ = 0;  // bytes of the disk that stay free
  double write_seconds_ = 0.0;
  std::thread completion_;
};

}  // namespace minisgl
