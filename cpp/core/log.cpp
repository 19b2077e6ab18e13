#include "core/log.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <ctime>
#include <mutex>

namespace minisgl {
namespace {

struct LevelName {
  const char* text;
  const char* json;
};
constexpr std::array<LevelName, 4> kNames = {
    LevelName{"DEBUG", "debug"}, {"INFO", "info"}, {"WARNING", "warning"}, {"ERROR", "error"}};

std::atomic<LogLevel> least_level = LogLevel::warning;
std::atomic<bool> as_json = false;

// No string: destructors of static objects write lines, too.
std::mutex process_mutex;
std::array<char, kMaxProcessName + 1> process_name{};  // guarded by process_mutex

std::string process() {
  const std::lock_guard lock(process_mutex);
  return process_name.data();
}

// Other than ASCII is escaped byte by byte: a file's name need not be text, and the line has to be JSON all the same.
std::string quoted(std::string_view text) {
  std::string result = "\"";
  for (const char character : text) {
    const auto byte = static_cast<unsigned char>(character);
    if (byte < 0x20 || byte >= 0x7f) {
      std::array<char, 8> escaped{};
      std::snprintf(escaped.data(), escaped.size(), "\\u%04x", byte);
      result += escaped.data();
    } else {
      if (byte == '"' || byte == '\\') result += '\\';
      result += character;
    }
  }
  return result += '"';
}

}  // namespace

std::string format_log_line(LogLevel level, std::string_view message, bool json, std::string_view process, long seconds,
                            int milliseconds) {
  const LevelName& name = kNames[static_cast<std::size_t>(level)];
  const std::time_t time = seconds;
  std::tm parts{};
  std::array<char, 32> shown{};
  if (!json) {
    localtime_r(&time, &parts);
    std::strftime(shown.data(), shown.size(), "%H:%M:%S", &parts);
    std::string line = std::string(shown.data()) + ' ' + name.text + ' ';
    if (!process.empty()) line.append(process).append(": ");
    return line.append(message);
  }
  gmtime_r(&time, &parts);
  const std::size_t length = std::strftime(shown.data(), shown.size(), "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(shown.data() + length, shown.size() - length, ".%03dZ", milliseconds);
  return std::string(R"({"time":")") + shown.data() + R"(","level":")" + name.json +
         R"(","logger":"minisgl._native","process":)" + quoted(process) + R"(,"message":)" + quoted(message) + '}';
}

void set_log(LogLevel least, bool json, std::string_view process) {
  const std::lock_guard lock(process_mutex);
  process_name = {};
  process.copy(process_name.data(), kMaxProcessName);
  least_level = least;
  as_json = json;
}

void log_line(LogLevel level, std::string_view message) noexcept {
  if (level < least_level) return;
  try {
    std::timespec now{};
    std::timespec_get(&now, TIME_UTC);
    const std::string line =
        format_log_line(level, message, as_json, process(), now.tv_sec, static_cast<int>(now.tv_nsec / 1'000'000)) +
        '\n';
    // In one piece, so that lines of other threads and processes don't get into it.
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
  } catch (...) {  // no memory for the line
  }
}

}  // namespace minisgl
