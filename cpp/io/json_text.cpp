// JSON that comes from a file nobody has checked: bounded in size and depth, never a json exception.
#include "io/json_text.h"

#include <nlohmann/json.hpp>
#include <string_view>
#include <unordered_set>

#include "core/error.h"
#include "io/mapped_file.h"
#include "io/quote.h"
#include "io/stand_in.h"

namespace minisgl {

nlohmann::json parse_json(std::span<const std::byte> text, const std::string& what, const JsonLimits& limits) {
  using Json = nlohmann::json;
  if (text.size() > limits.max_bytes) {
    throw InputError(concat(what, " has ", text.size(), " bytes of JSON; the limit is ", limits.max_bytes));
  }
  std::unordered_set<std::string> seen;
  const auto check = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > limits.max_depth)
      throw InputError(concat(what, " nests JSON deeper than ", limits.max_depth, " levels"));
    if (limits.unique_keys && depth == 1 && event == Json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!seen.insert(key).second) throw InputError(concat(what, " names ", quote_name(key), " twice"));
    }
    return true;
  };
  const auto* begin = reinterpret_cast<const char*>(text.data());
  try {
    return Json::parse(begin, begin + text.size(), check);
  } catch (const Json::parse_error& error) {
    throw InputError(concat(what, " is not valid JSON (at byte ", error.byte, ")"));
  } catch (const Json::exception&) {
    throw InputError(concat(what, " is not valid JSON (a number out of range)"));
  }
}

namespace {

// Python writes numbers that JSON doesn't have as NaN, Infinity and -Infinity. Outside of strings they become strings
// of that text, which only a reader of that very key refuses.
std::string with_quoted_constants(std::string_view text) {
  std::string result;
  bool in_string = false;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t length = 1;
    if (in_string) {
      if (text[at] == '\\') length = 2;
      if (text[at] == '"') in_string = false;
    } else if (text[at] == '"') {
      in_string = true;
    } else {
      for (const std::string_view constant : {"NaN", "Infinity", "-Infinity"}) {
        if (text.substr(at, constant.size()) == constant) length = constant.size();
      }
    }
    const bool quoted = length > 2;
    if (quoted) result += '"';
    result += text.substr(at, length);
    if (quoted) result += '"';
    at += length;
  }
  return result;
}

}  // namespace

nlohmann::json read_json_object(const std::string& path, const JsonLimits& limits) {
  const MappedFile file(path);
  refuse_stand_in(file.bytes(), path);
  const auto bytes = file.bytes();
  const std::string_view text{reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  const bool has_constants =
      bytes.size() <= limits.max_bytes && (text.find("NaN") != text.npos || text.find("Infinity") != text.npos);
  const std::string quoted = has_constants ? with_quoted_constants(text) : std::string();
  nlohmann::json value =
      parse_json(has_constants ? std::as_bytes(std::span(quoted)) : bytes, concat("'", path, "'"), limits);
  if (!value.is_object()) throw InputError(concat("'", path, "' is not a JSON object"));
  return value;
}

}  // namespace minisgl
