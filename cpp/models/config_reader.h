// Typed, bounded reading of a model's configuration, which comes from a file that nobody has checked.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace minisgl {

// Keys that are absent or null take the fallback; without one they are an error. Every error is an InputError that
// names the file, the key, the range and the value.
class ConfigReader {
 public:
  // Keeps a reference to `object`. `where` starts every message: "'/models/x'", "'/models/x': rope_scaling".
  ConfigReader(const nlohmann::json& object, std::string where);

  bool has(const char* key) const { return find(key) != nullptr; }
  bool has_entries(const char* key) const;            // false for an empty object or list, too
  bool is_null(const char* key) const;                // there, and null
  const nlohmann::json* find(const char* key) const;  // null when absent or null

  std::int64_t integer(const char* key, std::int64_t min, std::int64_t max,
                       std::optional<std::int64_t> fallback = std::nullopt) const;
  double number(const char* key, double min, double max, std::optional<double> fallback = std::nullopt) const;
  bool boolean(const char* key, bool fallback) const;
  std::string text(const char* key, const std::string& fallback) const;
  ConfigReader object(const char* key) const;  // the value must be there

  [[noreturn]] void fail(const std::string& message) const;
  // "fail" for a value of the wrong kind: "<key> must be <expected>, got <value>".
  [[noreturn]] void fail_value(const char* key, const std::string& expected) const;

 private:
  const nlohmann::json& object_;
  std::string where_;
};

}  // namespace minisgl
