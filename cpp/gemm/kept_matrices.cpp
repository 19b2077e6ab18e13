// A file: the matrices as they lie in memory, each from the beginning of a page on; then text, which says what they are
// of and a line for each matrix; then that text's size in 8 bytes. It is written without a name, so that a process that
// ends too early leaves nothing, and gets its name when all of it is on the disk.
#include "gemm/kept_matrices.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <span>
#include <sstream>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "core/quiet_thread.h"
#include "core/write_file.h"
#include "core/xxh64.h"

namespace minisgl {
namespace {

namespace fs = std::filesystem;

constexpr const char* kEnding = ".packed";
constexpr std::size_t kMostText = std::size_t{64} << 20;
// After so many seconds of writing, a start doesn't wait for a disk that takes fewer bytes a second.
constexpr double kPatience = 10.0, kSlowRate = 300e6;

std::int64_t page_bytes() {
  return ::sysconf(_SC_PAGESIZE);
}

std::string file_name(const std::string& title) {
  std::ostringstream name;
  name << std::hex << xxh64(std::as_bytes(std::span(title)), 0) << kEnding;
  return name.str();
}

std::string read_text(int file, std::int64_t offset, std::size_t size) {
  std::string text(size, '\0');
  const ssize_t got = ::pread(file, text.data(), size, offset);
  return got == static_cast<ssize_t>(size) ? text : std::string();
}

// With its pages, which a step then needn't wait for.
AlignedBuffer map(int file, std::int64_t offset, std::int64_t size) {
  AlignedBuffer bytes = AlignedBuffer::of_file(file, offset, static_cast<std::size_t>(size));
#ifdef MADV_POPULATE_READ
  ::madvise(bytes.data(), bytes.size(), MADV_POPULATE_READ);  // advice only
#endif
  return bytes;
}

// Removes those that were used longest ago, until `more` bytes fit in `most`. False where they never do.
bool make_room(const fs::path& folder, std::int64_t more, std::int64_t most) {
  if (more > most) return false;  // the others stay
  struct Kept {
    fs::file_time_type used;
    std::int64_t bytes;
    fs::path path;
  };
  std::vector<Kept> all;
  std::error_code error;
  for (auto entry = fs::directory_iterator(folder, error); !error && entry != fs::directory_iterator();
       entry.increment(error)) {
    if (entry->path().extension() != kEnding) continue;
    std::error_code gone;
    const auto bytes = static_cast<std::int64_t>(entry->file_size(gone));
    if (!gone) all.push_back({entry->last_write_time(gone), bytes, entry->path()});
  }
  std::ranges::sort(all, {}, &Kept::used);
  for (const Kept& kept : all) more += kept.bytes;
  for (const Kept& kept : all) {
    if (more <= most) break;
    if (fs::remove(kept.path, error)) more -= kept.bytes;
  }
  return more <= most;
}

}  // namespace

KeptMatrices::KeptMatrices(const KeepRequest& request)
    : file_(request.folder), title_(concat("minisgl's packed matrices, ", packed_layout, '\n', request.of, '\n')) {
  file_ /= file_name(title_);
  std::string refusal;
  if (open_kept(refusal)) return;
  if (refusal.empty())
    begin_file(request);
  else
    give_up(refusal);
}

KeptMatrices::~KeptMatrices() {
  if (completion_.joinable()) completion_.join();
  if (reading_ >= 0) ::close(reading_);
  if (writing_ >= 0) ::close(writing_);
  unlock();
}

bool KeptMatrices::lock() {
  lock_ = ::open((file_.string() + ".lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
  return lock_ >= 0 && ::flock(lock_, LOCK_EX | LOCK_NB) == 0;
}

void KeptMatrices::unlock() {
  if (lock_ < 0) return;
  ::unlink((file_.string() + ".lock").c_str());
  ::close(std::exchange(lock_, -1));
}

bool KeptMatrices::open_kept(std::string& refusal) {
  const int file = ::open(file_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) {
    if (errno != ENOENT && errno != ENOTDIR) refusal = concat("'", file_.string(), "': ", std::strerror(errno));
    return false;
  }
  struct stat status{};
  std::int64_t text_size = 0;
  constexpr std::int64_t tail = sizeof text_size;
  std::string text;
  const bool is_own = ::fstat(file, &status) == 0 && (status.st_uid == ::geteuid() || status.st_uid == 0);
  if (!is_own) {
    ::close(file);
    refusal = concat("'", file_.string(), "' is another user's");
    return false;
  }
  if (S_ISREG(status.st_mode) && status.st_size > tail &&
      ::pread(file, &text_size, sizeof text_size, status.st_size - tail) == tail && text_size > 0 &&
      text_size <= std::min<std::int64_t>(status.st_size - tail, kMostText)) {
    text = read_text(file, status.st_size - tail - text_size, static_cast<std::size_t>(text_size));
  }
  const std::int64_t data_size = status.st_size - tail - text_size;
  bool good = text.starts_with(title_);
  std::istringstream lines(good ? text.substr(title_.size()) : "");
  int dtype = 0;
  for (std::string name; good && lines >> dtype;) {
    Entry entry{};
    good = static_cast<bool>(lines >> entry.rows >> entry.cols >> entry.offset >> entry.size) && lines.get() == ' ' &&
           std::getline(lines, name);
    entry.dtype = static_cast<DType>(dtype);
    good = good && entry.offset >= 0 && entry.offset % page_bytes() == 0 && entry.size > 0 &&
           entry.size <= data_size - entry.offset &&
           entry.size == PackedMatrix::packed_bytes(entry.dtype, entry.rows, entry.cols) &&
           entries_.emplace(name, entry).second;
  }
  if (!good || entries_.empty()) {
    entries_.clear();
    ::close(file);
    log_line(LogLevel::warning, concat("'", file_.string(), "' is damaged; the weights are packed again"));
    std::error_code error;
    fs::remove(file_, error);
    if (error) refusal = error.message();
    return false;
  }
  reading_ = file;
  ::futimens(file, nullptr);  // used last; advice to make_room() alone
  return true;
}

void KeptMatrices::begin_file(const KeepRequest& request) {
  const fs::path folder = file_.parent_path();
  std::error_code error;
  fs::create_directories(folder, error);
  struct statvfs status{};
  if (error || ::statvfs(folder.c_str(), &status) != 0) return give_up(error ? error.message() : std::strerror(errno));
  const auto free_bytes = static_cast<std::int64_t>(status.f_bavail * status.f_frsize);
  constexpr std::int64_t mebibyte = std::int64_t{1} << 20;
  if (request.num_bytes > free_bytes / 2) {
    return give_up(concat("they take ", request.num_bytes / mebibyte, " MiB, and half of the ", free_bytes / mebibyte,
                          " MiB that are free stays free"));
  }
  if (!make_room(folder, request.num_bytes, request.most_bytes)) {
    return give_up(concat("they take ", request.num_bytes / mebibyte, " MiB, and --packed-cache-bytes is ",
                          request.most_bytes / mebibyte, " MiB"));
  }
  if (!lock()) {
    const std::string why = lock_ < 0 ? std::strerror(errno) : "another process is writing them";
    if (lock_ >= 0) ::close(std::exchange(lock_, -1));  // it stays the other's
    return give_up(why);
  }
  floor_ = free_bytes / 2;
  writing_ = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (writing_ < 0) give_up(std::strerror(errno));
}

void KeptMatrices::give_up(const std::string& why) {
  if (writing_ >= 0) ::close(writing_);  // matrices in it stay mapped
  writing_ = -1;
  unlock();
  entries_.clear();
  log_line(LogLevel::info, concat("the packed weights aren't kept in '", file_.parent_path().string(), "': ", why));
}

std::optional<PackedMatrix> KeptMatrices::take(const std::string& name, std::int64_t rows, std::int64_t cols) {
  if (reading_ < 0) return {};
  const auto found = entries_.find(name);
  if (found == entries_.end() || found->second.rows != rows || found->second.cols != cols) return {};
  const Entry& entry = found->second;
  mapped_bytes_ += entry.size;
  return PackedMatrix::packed(entry.dtype, rows, cols, map(reading_, entry.offset, entry.size));
}

void KeptMatrices::put(const std::string& name, PackedMatrix& matrix) {
  if (writing_ < 0 || matrix.nbytes() == 0) return;
  struct statvfs now{};  // others write, too
  if (::fstatvfs(writing_, &now) == 0 && static_cast<std::int64_t>(now.f_bavail * now.f_frsize) < floor_)
    return give_up("half of what was free stays free");
  const auto start = std::chrono::steady_clock::now();
  if (!write_file(writing_, {matrix.data(), matrix.nbytes()}, size_)) return give_up(std::strerror(errno));
  const auto bytes = static_cast<std::int64_t>(matrix.nbytes());
  entries_.try_emplace(name, Entry{matrix.dtype(), matrix.rows(), matrix.cols(), size_, bytes});
  matrix.move_to(map(writing_, size_, bytes));
  mapped_bytes_ += bytes;
  write_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  size_ += (bytes + page_bytes() - 1) / page_bytes() * page_bytes();
  if (write_seconds_ > kPatience && static_cast<double>(size_) < kSlowRate * write_seconds_)
    give_up("the disk takes too long");
}

void KeptMatrices::finish() {
  if (writing_ < 0 || entries_.empty()) return;
  const std::string text = trailer();
  const auto text_size = static_cast<std::int64_t>(text.size());
  if (!write_file(writing_, std::as_bytes(std::span(text)), size_) ||
      !write_file(writing_, std::as_bytes(std::span(&text_size, 1)), size_ + text_size)) {
    return give_up(std::strerror(errno));
  }
  try {
    completion_ = start_quiet_thread([this] { complete(); });
  } catch (const InputError& error) {
    give_up(error.what());
  }
}

std::string KeptMatrices::trailer() const {
  std::ostringstream text;
  text << title_;
  for (const auto& [name, entry] : entries_) {
    text << static_cast<int>(entry.dtype) << ' ' << entry.rows << ' ' << entry.cols << ' ' << entry.offset << ' '
         << entry.size << ' ' << name << '\n';
  }
  return text.str();
}

void KeptMatrices::complete() {
  if (::fdatasync(writing_) != 0) {  // its pages count as clean now: read again they would hold anything
    log_line(LogLevel::error, concat("'", file_.string(), "' holds the weights and can't be written: ",
                                     std::strerror(errno), "; use --packed-cache-bytes 0"));
    std::abort();
  }
  const std::string unnamed = concat("/proc/self/fd/", writing_);
  if (::linkat(AT_FDCWD, unnamed.c_str(), AT_FDCWD, file_.c_str(), AT_SYMLINK_FOLLOW) != 0 && errno != EEXIST)
    log_line(LogLevel::warning, concat("'", file_.string(), "' can't be kept: ", std::strerror(errno)));
  unlock();
}

}  // namespace minisgl
