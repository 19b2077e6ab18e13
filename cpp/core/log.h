// Lines on the standard error, in the form that the process's Python lines have (python/minisgl/log.py).
#pragma once

#include <string>
#include <string_view>

namespace minisgl {

enum class LogLevel { debug, info, warning, error };

// What is written from now on, by all threads: lines of this level and above, as text or each as a JSON object. Until
// the first call: warnings and errors, as text.
void set_log(LogLevel least, bool json);

// Writes a line. It never throws: destructors call it.
void log_line(LogLevel level, std::string_view message) noexcept;

// The line without its end, as log_line() would write it at `seconds` and `milliseconds` of the system's clock.
std::string format_log_line(LogLevel level, std::string_view message, bool json, long seconds, int milliseconds);

}  // namespace minisgl
