// JSON that comes from a file nobody has checked: bounded in size and depth, never a json exception.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

namespace minisgl {

struct JsonLimits {
  std::size_t max_bytes = std::size_t{16} << 20;
  int max_depth = 32;
  bool unique_keys = false;  // refuse a key that stands twice in the outermost object
};

// Throws InputError, which starts with `what` ("'config.json' of ..."), for text that is too long, too deep or not
// JSON.
nlohmann::json parse_json(std::span<const std::byte> text, const std::string& what, const JsonLimits& limits = {});

// The same for a whole file, in which Python may have written NaN and Infinity: they become strings of that text. The
// outermost value must be an object.
nlohmann::json read_json_object(const std::string& path, const JsonLimits& limits = {});

}  // namespace minisgl
