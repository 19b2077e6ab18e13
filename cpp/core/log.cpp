// One vector under a lock, and an eventfd that is written when the vector stops being empty.
#include "core/log.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <utility>

#include "core/error.h"

namespace minisgl {
namespace {

struct Log {
  std::mutex mutex;   // guards the rest
  int event_fd = -1;  // of whoever took it over; -1: nobody
  std::vector<LogLine> lines;
  std::size_t num_left_out = 0;
};

// Never destroyed: threads may have something to say while the process ends.
Log& the_log() {
  static Log& log = *new Log;
  return log;
}

void print(const LogLine& line) {
  if (line.level >= LogLevel::info) std::fprintf(stderr, "minisgl: %s\n", line.text.c_str());
}

}  // namespace

void log_line(LogLevel level, std::string text) noexcept {
  try {
    Log& log = the_log();
    LogLine line{level, std::move(text)};
    const std::lock_guard lock(log.mutex);
    if (log.event_fd < 0) return print(line);
    if (log.lines.size() == LogTaker::max_waiting_lines) {
      ++log.num_left_out;
      return;
    }
    log.lines.push_back(std::move(line));
    if (log.lines.size() == 1) eventfd_write(log.event_fd, 1);
  } catch (...) {  // no memory for a line
  }
}

LogTaker::LogTaker() {
  Log& log = the_log();
  const std::lock_guard lock(log.mutex);
  if (log.event_fd >= 0) throw InputError("the native log is taken over already");
  log.event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (log.event_fd < 0) throw InputError(concat("the native log can't be taken over: eventfd: ", std::strerror(errno)));
}

LogTaker::~LogTaker() {
  std::vector<LogLine> rest;
  try {
    rest = take();
  } catch (...) {  // no memory for them
  }
  Log& log = the_log();
  const std::lock_guard lock(log.mutex);
  for (const LogLine& line : rest) print(line);
  close(std::exchange(log.event_fd, -1));
}

int LogTaker::event_fd() const {
  Log& log = the_log();
  const std::lock_guard lock(log.mutex);
  return log.event_fd;
}

std::vector<LogLine> LogTaker::take() {
  Log& log = the_log();
  const std::lock_guard lock(log.mutex);
  eventfd_t count = 0;
  if (!log.lines.empty()) eventfd_read(log.event_fd, &count);
  std::vector<LogLine> lines = std::exchange(log.lines, {});
  if (log.num_left_out > 0)
    lines.push_back({LogLevel::warning, concat(std::exchange(log.num_left_out, 0), " lines of the log were left out")});
  return lines;
}

}  // namespace minisgl
