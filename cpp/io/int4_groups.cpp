#include "io/int4_groups.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/error.h"
#include "core/float_at.h"
#include "core/half.h"
#include "io/quote.h"

namespace minisgl {
namespace {

using Json = nlohmann::json;

constexpr std::int64_t kPacked = 8;  // integers of a word
constexpr std::string_view kWeight = ".weight";

// Where AWQ has output n % 8 in a word.
constexpr std::array<int, kPacked> kAwqPlace = {0, 4, 1, 5, 2, 6, 3, 7};

std::uint32_t word_at(const SafetensorsEntry& entry, std::int64_t index) {
  std::uint32_t word;
  std::memcpy(&word, entry.bytes.data() + index * 4, sizeof word);
  return word;
}
int int4_of(std::uint32_t word, int place) {
  return static_cast<int>(word >> (4 * place) & 15);
}

// The tensors of one matrix, whose shapes fit each other.
struct Parts {
  const SafetensorsEntry* weight = nullptr;
  const SafetensorsEntry* scales = nullptr;
  const SafetensorsEntry* zeros = nullptr;   // null: all are 8
  const SafetensorsEntry* groups = nullptr;  // of the inputs; null: in order
  std::int64_t rows = 0, cols = 0, group_size = 0;

  std::int64_t num_groups() const { return cols / group_size; }
};

// The stored integers as a file's blocks.
class Groups {
 public:
  Groups(const Int4Scheme& scheme, const Parts& parts)
      : scheme_(scheme), parts_(parts), scale_dtype_(*dtype_of(parts.scales->dtype)) {}

  float scale(std::int64_t row, std::int64_t group) const {
    const std::int64_t index =
        scheme_.layout == Int4Scheme::Layout::packed ? row * parts_.num_groups() + group : group * parts_.rows + row;
    return float_at(scale_dtype_, parts_.scales->bytes.data(), index);
  }
  int zero(std::int64_t row, std::int64_t group) const {
    if (parts_.zeros == nullptr) return 8;
    const auto place = static_cast<int>(row % kPacked);
    if (scheme_.layout == Int4Scheme::Layout::packed)
      return int4_of(word_at(*parts_.zeros, row / kPacked * parts_.num_groups() + group), place);
    const std::uint32_t word = word_at(*parts_.zeros, group * ((parts_.rows + kPacked - 1) / kPacked) + row / kPacked);
    if (scheme_.layout == Int4Scheme::Layout::awq) return int4_of(word, kAwqPlace[static_cast<std::size_t>(place)]);
    return int4_of(word, place) + static_cast<int>(scheme_.zero_offset);
  }
  // 8 inputs from `column` on, the first in the lowest bits.
  std::uint32_t inputs(std::int64_t row, std::int64_t column) const {
    switch (scheme_.layout) {
      case Int4Scheme::Layout::gptq: return word_at(*parts_.weight, column / kPacked * parts_.rows + row);
      case Int4Scheme::Layout::packed:
        return word_at(*parts_.weight, row * ((parts_.cols + kPacked - 1) / kPacked) + column / kPacked);
      case Int4Scheme::Layout::awq: break;
    }
    const int place = kAwqPlace[static_cast<std::size_t>(row % kPacked)];
    std::uint32_t word = 0;
    for (int i = 0; i < kPacked; ++i)
      word |= static_cast<std::uint32_t>(
                  int4_of(word_at(*parts_.weight, (column + i) * (parts_.rows / kPacked) + row / kPacked), place))
              << (4 * i);
    return word;
  }
  std::int64_t group_of(std::int64_t column) const {
    return parts_.groups == nullptr ? column / parts_.group_size : word_at(*parts_.groups, column);
  }
  // Calls body(row, column) for every block's beginning, in an order in which neighbours lie in the cache.
  template <typename Body>
  void for_each_block(std::int64_t block, const Body& body) const {
    constexpr std::int64_t kTile = 128;
    for (std::int64_t first = 0; first < parts_.rows; first += kTile) {
      for (std::int64_t column = 0; column < parts_.cols; column += block) {
        for (std::int64_t row = first; row < std::min(first + kTile, parts_.rows); ++row) body(row, column);
      }
    }
  }

 private:
  const Int4Scheme& scheme_;
  const Parts& parts_;
  DType scale_dtype_;
};

void store_f16(std::byte* to, float value) {
  const std::uint16_t bits = f32_to_f16(value);
  std::memcpy(to, &bits, sizeof bits);
}

// The format that loses nothing, of groups that lie in order.
DType format_of(const Int4Scheme& scheme, const Parts& parts) {
  if (parts.groups != nullptr) return DType::bf16;
  if (parts.group_size % 128 == 0) return DType::int4_128;
  if (parts.group_size % 64 == 0) return DType::int4_64;
  const Groups groups(scheme, parts);
  for (std::int64_t row = 0; row < parts.rows; ++row) {
    for (std::int64_t group = 0; group < parts.num_groups(); ++group)
      if (groups.zero(row, group) != 8) return DType::q4_1;
  }
  return DType::q4_0;
}

// 32 inputs as the two halves of 16 bytes.
void store_nibbles(const Groups& groups, std::int64_t row, std::int64_t column, std::byte* to) {
  for (int word = 0; word < 2; ++word) {
    const std::uint32_t low = groups.inputs(row, column + 8 * word), high = groups.inputs(row, column + 16 + 8 * word);
    for (int i = 0; i < 8; ++i) to[8 * word + i] = static_cast<std::byte>(int4_of(low, i) | int4_of(high, i) << 4);
  }
}

AlignedBuffer convert(const Int4Scheme& scheme, const Parts& parts, DType dtype) {
  const Groups groups(scheme, parts);
  const std::int64_t stride = row_bytes(dtype, parts.cols), block = dtype_info(dtype).block_size;
  AlignedBuffer out(static_cast<std::size_t>(parts.rows * stride));
  groups.for_each_block(dtype == DType::bf16 ? kPacked : block, [&](std::int64_t row, std::int64_t column) {
    std::byte* to = out.data() + row * stride + row_bytes(dtype, column);
    if (dtype == DType::bf16) {
      const std::uint32_t word = groups.inputs(row, column);
      for (int i = 0; i < kPacked; ++i) {
        const std::int64_t group = groups.group_of(column + i);
        const float value = groups.scale(row, group) * static_cast<float>(int4_of(word, i) - groups.zero(row, group));
        const std::uint16_t bits = f32_to_bf16(value);
        std::memcpy(to + 2 * i, &bits, sizeof bits);
      }
      return;
    }
    const std::int64_t group = groups.group_of(column);
    const float scale = groups.scale(row, group);
    const auto zero = static_cast<float>(groups.zero(row, group));
    store_f16(to, scale);
    if (dtype == DType::q4_0) return store_nibbles(groups, row, column, to + 2);
    store_f16(to + 2, dtype == DType::q4_1 ? -scale * zero : zero);
    if (dtype == DType::q4_1) return store_nibbles(groups, row, column, to + 4);
    for (std::int64_t i = 0; i < block; i += kPacked) {
      const std::uint32_t word = groups.inputs(row, column + i);
      std::memcpy(to + 4 + i / 2, &word, sizeof word);
    }
  });
  return out;
}

class Int4Source final : public WeightSource {
 public:
  Int4Source(std::unique_ptr<WeightSource> source, const Int4Scheme& scheme, FindEntry find)
      : source_(std::move(source)), scheme_(scheme), find_(std::move(find)) {
    const std::string_view main = scheme_.layout == Int4Scheme::Layout::packed ? ".weight_packed" : ".qweight";
    for (const std::string& name : source_->names())
      if (name.ends_with(main)) stems_.insert(name.substr(0, name.size() - main.size()));
  }

  const Json& config() const override { return source_->config(); }
  bool contains(const std::string& name) const override { return stem_of(name) || source_->contains(name); }
  std::string path() const override { return source_->path(); }
  std::vector<std::string> files() const override { return source_->files(); }
  bool interleaved_rope() const override { return source_->interleaved_rope(); }
  bool has_whole_norms() const override { return source_->has_whole_norms(); }

  std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const std::string& name : source_->names()) {
      const std::size_t dot = name.rfind('.');
      const std::string stem = name.substr(0, dot == std::string::npos ? 0 : dot);
      if (!stems_.contains(stem) || name == stem + ".bias") names.push_back(name);
    }
    for (const std::string& stem : stems_) names.push_back(stem + std::string(kWeight));
    return names;
  }

  TensorData described(const std::string& name) const override {
    const auto stem = stem_of(name);
    if (!stem) return source_->described(name);
    const Parts parts = parts_of(*stem);
    return {format_of(scheme_, parts), {parts.rows, parts.cols}, parts.weight->bytes, false};
  }
  StoredTensor stored(const std::string& name) const override {
    const auto stem = stem_of(name);
    if (!stem) return source_->stored(name);
    const Parts parts = parts_of(*stem);
    return {parts.weight->dtype, parts.weight->shape, parts.weight->bytes};
  }

  TensorData tensor(const std::string& name) const override {
    const auto stem = stem_of(name);
    if (!stem) return source_->tensor(name);
    const Parts parts = parts_of(*stem);
    const DType dtype = format_of(scheme_, parts);
    if (made_name_ != name) {
      made_ = {};
      made_ = convert(scheme_, parts, dtype);
      made_name_ = name;
    }
    return {dtype, {parts.rows, parts.cols}, {made_.data(), made_.size()}, false};
  }

 private:
  std::optional<std::string> stem_of(const std::string& name) const {
    if (!name.ends_with(kWeight)) return std::nullopt;
    std::string stem = name.substr(0, name.size() - kWeight.size());
    return stems_.contains(stem) ? std::optional(std::move(stem)) : std::nullopt;
  }

  const SafetensorsEntry& entry(const std::string& name, const std::vector<std::string_view>& dtypes) const {
    const SafetensorsEntry* found = find_(name);
    if (found == nullptr) throw InputError(concat("'", path(), "' has no tensor ", quote_name(name)));
    if (std::ranges::find(dtypes, found->dtype) == dtypes.end()) {
      throw InputError(concat("'", path(), "': tensor ", quote_name(name), " has dtype ", quote_name(found->dtype),
                              ", which is none of a checkpoint in int4"));
    }
    return *found;
  }
  void expect_shape(const std::string& name, const SafetensorsEntry& entry,
                    const std::vector<std::int64_t>& shape) const {
    if (entry.shape == shape) return;
    throw InputError(concat("'", path(), "': tensor ", quote_name(name), " of a matrix in int4 has a shape that ",
                            "doesn't fit its other tensors"));
  }

  Parts parts_of(const std::string& stem) const {
    const bool packed = scheme_.layout == Int4Scheme::Layout::packed, awq = scheme_.layout == Int4Scheme::Layout::awq;
    const std::string weight = stem + (packed ? ".weight_packed" : ".qweight");
    const std::string scales = stem + (packed ? ".weight_scale" : ".scales");
    const std::string zeros = stem + (packed ? ".weight_zero_point" : ".qzeros");
    Parts parts;
    parts.weight = &entry(weight, {"I32"});
    if (parts.weight->shape.size() != 2) expect_shape(weight, *parts.weight, {0, 0});
    parts.rows = parts.weight->shape[packed ? 0 : 1] * (awq ? kPacked : 1);
    parts.cols = parts.weight->shape[packed ? 1 : 0] * (awq ? 1 : kPacked);
    parts.group_size = scheme_.group_size > 0 ? scheme_.group_size : parts.cols;
    if (parts.cols % parts.group_size != 0 || parts.group_size % 32 != 0) {
      throw InputError(concat("'", path(), "': ", quote_name(weight), " has ", parts.cols, " inputs in groups of ",
                              parts.group_size, ": whole groups of a multiple of 32 are needed"));
    }
    const std::int64_t groups = parts.num_groups(), rows = parts.rows, row_words = (rows + kPacked - 1) / kPacked;
    parts.scales = &entry(scales, {"F16", "BF16", "F32"});
    expect_shape(scales, *parts.scales, packed ? std::vector{rows, groups} : std::vector{groups, rows});
    if (find_(zeros) != nullptr) {
      parts.zeros = &entry(zeros, {"I32"});
      expect_shape(zeros, *parts.zeros, packed ? std::vector{row_words, groups} : std::vector{groups, row_words});
    }
    const std::string order = stem + (packed ? ".weight_g_idx" : ".g_idx");
    if (!awq && find_(order) != nullptr) {
      const SafetensorsEntry& index = entry(order, {"I32"});
      expect_shape(order, index, {parts.cols});
      for (std::int64_t column = 0; column < parts.cols; ++column) {
        const std::uint32_t group = word_at(index, column);
        if (group >= static_cast<std::uint32_t>(groups)) {
          throw InputError(concat("'", path(), "': ", quote_name(order), " names group ", group, " of ", groups));
        }
        if (group != column / parts.group_size) parts.groups = &index;
      }
    }
    return parts;
  }

  std::unique_ptr<WeightSource> source_;
  Int4Scheme scheme_;
  FindEntry find_;
  std::unordered_set<std::string> stems_;  // of the matrices in int4
  mutable std::string made_name_;          // the tensor that was asked for last
  mutable AlignedBuffer made_;
};

std::int64_t integer_of(const Json& values, const char* key, std::int64_t otherwise) {
  const auto found = values.find(key);
  return found != values.end() && found->is_number_integer() ? found->get<std::int64_t>() : otherwise;
}
std::string text_of(const Json& values, const char* key) {
  const auto found = values.find(key);
  return found != values.end() && found->is_string() ? found->get<std::string>() : "";
}

// Of compressed-tensors: what all groups of layers have.
Int4Scheme packed_scheme(const Json& quantization, const std::string& path) {
  const auto groups = quantization.find("config_groups");
  if (groups == quantization.end() || !groups->is_object() || groups->size() != 1) {
    throw InputError(concat("'", path, "': weights quantised in several ways are not supported"));
  }
  const Json& group = *groups->begin();
  const auto weights = group.find("weights");
  if (weights == group.end() || !weights->is_object() || integer_of(*weights, "num_bits", 0) != 4 ||
      text_of(*weights, "type") == "float") {
    throw InputError(concat("'", path, "': packed weights of other than integers of 4 bits are not supported"));
  }
  if (const auto inputs = group.find("input_activations"); inputs != group.end() && !inputs->is_null()) {
    throw InputError(concat("'", path, "': weights in int4 are multiplied by activations as they are; quantised ones ",
                            "are not supported"));
  }
  const std::int64_t size = integer_of(*weights, "group_size", 0);
  return {.layout = Int4Scheme::Layout::packed, .group_size = std::max<std::int64_t>(size, 0)};
}

}  // namespace

std::optional<Int4Scheme> int4_scheme(const Json& config, const std::string& path) {
  const auto found = config.find("quantization_config");
  if (found == config.end() || !found->is_object()) return std::nullopt;
  const Json& quantization = *found;
  const std::string method = text_of(quantization, "quant_method");
  if (method == "compressed-tensors") {
    if (text_of(quantization, "format") != "pack-quantized") return std::nullopt;
    return packed_scheme(quantization, path);
  }
  if (method != "awq" && method != "gptq") return std::nullopt;
  const std::int64_t bits = integer_of(quantization, "bits", integer_of(quantization, "w_bit", 0));
  if (bits != 4) {
    throw InputError(concat("'", path, "': ", method, " weights of ", bits, " bits are not supported, 4 bits are"));
  }
  if (const std::string version = text_of(quantization, "version"); method == "awq" && version != "gemm") {
    throw InputError(
        concat("'", path, "': AWQ weights of version ", quote_name(version), " are not supported, 'gemm' is"));
  }
  const bool is_gptq = method == "gptq";
  return Int4Scheme{.layout = is_gptq ? Int4Scheme::Layout::gptq : Int4Scheme::Layout::awq,
                    .group_size = std::max<std::int64_t>(integer_of(quantization, "group_size", 128), 0),
                    .zero_offset = is_gptq && text_of(quantization, "checkpoint_format") != "gptq_v2" ? 1 : 0};
}

std::unique_ptr<WeightSource> with_int4_groups(std::unique_ptr<WeightSource> source, const Int4Scheme& scheme,
                                               FindEntry find) {
  return std::make_unique<Int4Source>(std::move(source), scheme, std::move(find));
}

}  // namespace minisgl
