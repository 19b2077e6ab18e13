// Lines on the standard error, in the form that the process's Python lines have (python/minisgl/log.py).
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace minisgl {

enum class LogLevel { debug, info, warning, error };

// What is written from now on, by all threads: lines of this level and above, as text or each as a JSON object, with
// the name of this process. Until the first call: warnings and errors, as text and without a name. A name is cut at
// kMaxProcessName characters.
inline constexpr std::size_t kMaxProcessName = 63;
void set_log(LogLevel least, bool json, std::string_view process);

// Writes a line. It never throws: destructors call it.
void log_line(LogLevel level, std::string_view message) noexcept;

// The line without its end, as log_line() would write it at `seconds` and `milliseconds` of the system's clock.
std::string format_log_line(LogLevel level, std::string_view message, bool json, std::string_view process, long seconds,
                            int milliseconds);

}  // namespace minisgl
