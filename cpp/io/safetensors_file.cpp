// Parser of safetensors: 8 bytes of header length, the header (JSON: tensor -> dtype, shape, data_offsets), the data.
#include "io/safetensors_file.h"

#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "core/byte_reader.h"
#include "core/error.h"
#include "io/json_text.h"
#include "io/quote.h"
#include "io/stand_in.h"
#include "io/tensor_layout.h"

namespace minisgl {
namespace {

using Json = nlohmann::json;

constexpr std::size_t max_header_bytes = 100'000'000;  // the format's own limit
constexpr std::size_t max_dims = 16;

constexpr std::array<std::pair<std::string_view, std::int64_t>, 14> element_bytes{{
    {"BOOL", 1},
    {"U8", 1},
    {"I8", 1},
    {"F8_E5M2", 1},
    {"F8_E4M3", 1},
    {"U16", 2},
    {"I16", 2},
    {"F16", 2},
    {"BF16", 2},
    {"U32", 4},
    {"I32", 4},
    {"F32", 4},
    {"I64", 8},
    {"F64", 8},
}};

class HeaderEntry {
 public:
  HeaderEntry(const std::string& file, const std::string& tensor, const Json& value)
      : where_(concat("'", file, "': tensor ", quote_name(tensor))), value_(value) {
    if (!value.is_object()) fail("is not described by a JSON object");
  }

  [[noreturn]] void fail(const std::string& what) const { throw InputError(where_ + " " + what); }

  std::string dtype() const {
    const Json& name = field("dtype");
    if (!name.is_string()) fail("has a dtype that is not a string");
    return name.get<std::string>();
  }

  std::vector<std::int64_t> shape() const { return sizes("shape", max_dims); }

  std::pair<std::int64_t, std::int64_t> data_offsets() const {
    const auto offsets = sizes("data_offsets", 2);
    if (offsets.size() != 2) fail("has data_offsets that are not two numbers");
    return {offsets[0], offsets[1]};
  }

 private:
  const Json& field(const char* key) const {
    const auto entry = value_.find(key);
    if (entry == value_.end()) fail(concat("has no ", key));
    return *entry;
  }

  std::vector<std::int64_t> sizes(const char* key, std::size_t max_count) const {
    const Json& list = field(key);
    if (!list.is_array() || list.size() > max_count) {
      fail(concat("has a ", key, " that is not a list of at most ", max_count, " numbers"));
    }
    std::vector<std::int64_t> result;
    for (const Json& item : list) {
      // Unsigned integers above 2^63 - 1 would change sign.
      if (!item.is_number_unsigned() || item.get<std::uint64_t>() > std::uint64_t{INT64_MAX}) {
        fail(concat("has a ", key, " with something else than integers from 0 to 2^63 - 1"));
      }
      result.push_back(item.get<std::int64_t>());
    }
    return result;
  }

  std::string where_;
  const Json& value_;
};

SafetensorsEntry resolve(const HeaderEntry& header, std::span<const std::byte> data) {
  SafetensorsEntry entry{header.dtype(), header.shape(), {}};
  const auto [begin, end] = header.data_offsets();
  if (begin > end || static_cast<std::uint64_t>(end) > data.size()) {
    header.fail(concat("takes bytes ", begin, " to ", end, " of ", data.size(),
                       " bytes of tensor data: the file is truncated or damaged"));
  }
  entry.bytes = data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  for (const auto& [dtype, size] : element_bytes) {
    if (entry.dtype != dtype) continue;
    const auto expected = tensor_bytes(entry.shape, 1, size);
    if (!expected || *expected != end - begin) {
      header.fail(concat("of dtype ", dtype, " and shape ", shape_text(entry.shape), " can't take ", end - begin,
                         " bytes", expected ? concat(", it needs ", *expected) : ""));
    }
  }
  return entry;
}

}  // namespace

std::optional<DType> dtype_of(const std::string& name) {
  if (name == "F32") return DType::f32;
  if (name == "F16") return DType::f16;
  if (name == "BF16") return DType::bf16;
  if (name == "F8_E4M3") return DType::f8e4m3;
  return std::nullopt;
}

std::string text_part_name(const std::string& name) {
  constexpr std::string_view before = "language_model.", behind = "model.language_model.";
  if (name.starts_with(before)) return name.substr(before.size());
  if (name.starts_with(behind)) return "model." + name.substr(behind.size());
  return name;
}

std::map<std::string, SafetensorsEntry> parse_safetensors(std::span<const std::byte> bytes, const std::string& name) {
  refuse_stand_in(bytes, name);
  ByteReader reader(bytes, name);
  const auto header_bytes = reader.read<std::uint64_t>("the header's length");
  const auto text = reader.take(header_bytes, "the header");
  const Json header = parse_json(text, concat("the header of '", name, "'"),
                                 {.max_bytes = max_header_bytes, .max_depth = 8, .unique_keys = true});
  if (!header.is_object()) throw InputError(concat("the header of '", name, "' is not a JSON object"));

  const auto data = bytes.subspan(reader.position());
  std::map<std::string, SafetensorsEntry> entries;
  for (const auto& [tensor, value] : header.items()) {
    if (tensor == "__metadata__") continue;
    entries.emplace(tensor, resolve(HeaderEntry(name, tensor, value), data));
  }
  return entries;
}

}  // namespace minisgl
