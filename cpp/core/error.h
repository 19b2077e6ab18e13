// Two kinds of failure: InputError is the user's (a bad file, a bad flag) and its message is shown as it is;
// CheckError is ours (a broken invariant) and carries file and line.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace minisgl {

class InputError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class CheckError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// Puts text, numbers and characters together. It uses no streams: those depend on the process's locale, and break where
// several copies of the C++ library share a process.
template <typename Part>
void append_part(std::string& out, const Part& part) {
  if constexpr (std::is_same_v<Part, char>) {
    out += part;
  } else if constexpr (std::is_integral_v<Part>) {
    out += std::to_string(part);
  } else if constexpr (std::is_floating_point_v<Part>) {
    char text[32];
    out.append(text, static_cast<std::size_t>(std::snprintf(text, sizeof text, "%g", static_cast<double>(part))));
  } else {
    out += std::string_view(part);
  }
}

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::string out;
  (append_part(out, parts), ...);
  return out;
}

}  // namespace minisgl

// MINISGL_CHECK(condition, parts...): throws CheckError with the place, the condition and the parts put together.
#define MINISGL_CHECK(condition, ...)                                                                    \
  do {                                                                                                   \
    if (!(condition)) [[unlikely]]                                                                       \
      throw ::minisgl::CheckError(::minisgl::concat(                                                     \
          __FILE__, ":", __LINE__, ": check '" #condition "' failed" __VA_OPT__(, ": ", ) __VA_ARGS__)); \
  } while (false)
