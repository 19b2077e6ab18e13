// Lines for people, from any native thread: none of them takes the GIL, and none fails because of a line.
//
// Whoever takes the log over (LogTaker) gets the lines, and hands them to its own logging. While nobody does, and for
// what comes after, lines from `info` up go to stderr. There is one log in a process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace minisgl {

enum class LogLevel : std::uint8_t { debug, info, warning, error };

struct LogLine {
  LogLevel level;
  std::string text;
};

// Never throws; takes a short lock.
void log_line(LogLevel level, std::string text) noexcept;

// The log of the process, from its construction to its destruction. One at a time: InputError for a second.
class LogTaker {
 public:
  LogTaker();
  ~LogTaker();  // lines that were not taken go to stderr
  LogTaker(const LogTaker&) = delete;
  LogTaker& operator=(const LogTaker&) = delete;

  // Readable while lines wait.
  int event_fd() const;
  // All lines that wait, in order. Of more than max_waiting_lines the latest are left out, and a line says how many.
  std::vector<LogLine> take();

  static constexpr std::size_t max_waiting_lines = 1000;
};

}  // namespace minisgl
