// Typed, bounded reading of a model's configuration, which comes from a file that nobody has checked.
#include "models/config_reader.h"

#include <cmath>
#include <utility>

#include "core/error.h"
#include "io/quote.h"

namespace minisgl {
namespace {

// A value as a message shows it: short and printable.
std::string shown(const nlohmann::json& value) {
  if (value.is_array()) return "a list";
  if (value.is_object()) return "an object";
  if (value.is_string()) return quote_name(value.get_ref<const std::string&>());
  return value.dump();
}

}  // namespace

ConfigReader::ConfigReader(const nlohmann::json& object, std::string where)
    : object_(object), where_(std::move(where)) {}

bool ConfigReader::has_entries(const char* key) const {
  const nlohmann::json* value = find(key);
  return value != nullptr && !(value->is_structured() && value->empty());
}

bool ConfigReader::is_null(const char* key) const {
  const auto entry = object_.find(key);
  return entry != object_.end() && entry->is_null();
}

const nlohmann::json* ConfigReader::find(const char* key) const {
  const auto entry = object_.find(key);
  return entry == object_.end() || entry->is_null() ? nullptr : &*entry;
}

void ConfigReader::fail(const std::string& message) const {
  throw InputError(where_ + ": " + message);
}

void ConfigReader::fail_value(const char* key, const std::string& expected) const {
  const nlohmann::json* value = find(key);
  fail(concat(key, " must be ", expected, value == nullptr ? ", and is missing" : ", got " + shown(*value)));
}

std::int64_t ConfigReader::integer(const char* key, std::int64_t min, std::int64_t max,
                                   std::optional<std::int64_t> fallback) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value != nullptr && value->is_number_integer()) {
    // Unsigned numbers above 2^63 - 1 would change sign.
    const bool fits = !value->is_number_unsigned() || value->get<std::uint64_t>() <= std::uint64_t{INT64_MAX};
    const auto result = value->get<std::int64_t>();
    if (fits && result >= min && result <= max) return result;
  }
  if (value != nullptr && value->is_number_float()) {  // 8192.0 is meant as an integer
    const auto result = value->get<double>();
    const bool in_range = result >= static_cast<double>(min) && result <= static_cast<double>(max);
    if (in_range && std::abs(result) < 0x1p53 && std::floor(result) == result) return static_cast<std::int64_t>(result);
  }
  fail_value(key, concat("an integer from ", min, " to ", max));
}

double ConfigReader::number(const char* key, double min, double max, std::optional<double> fallback) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value != nullptr && value->is_number()) {
    const auto result = value->get<double>();
    if (result >= min && result <= max) return result;  // NaN fails both
  }
  fail_value(key, concat("a number from ", min, " to ", max));
}

bool ConfigReader::boolean(const char* key, bool fallback) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) fail_value(key, "true or false");
  return value->get<bool>();
}

std::string ConfigReader::text(const char* key, const std::string& fallback) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_string()) fail_value(key, "a string");
  return value->get<std::string>();
}

ConfigReader ConfigReader::object(const char* key) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr || !value->is_object()) fail_value(key, "an object");
  return {*value, concat(where_, ": ", key)};
}

}  // namespace minisgl
