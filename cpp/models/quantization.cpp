// Methods by name, and the shapes that scales come in.
#include "models/quantization.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/float_at.h"
#include "core/half.h"
#include "io/quote.h"
#include "io/tensor_layout.h"

namespace minisgl {
namespace {

using Json = nlohmann::json;

constexpr const char* kSupported =
    "supported: fp8, fbgemm_fp8, awq and gptq of 4 bits, compressed-tensors of 8-bit floats and pack-quantized in 4 "
    "bits; else use the model in bf16, f16 or f32, or as a GGUF file";

// Whether every group's weights are floats of 8 bits.
bool has_byte_floats(const ConfigReader& quantization) {
  const Json* groups = quantization.find("config_groups");
  if (groups == nullptr || !groups->is_object() || groups->empty()) return false;
  return std::ranges::all_of(*groups, [](const Json& group) {
    const auto weights = group.is_object() ? group.find("weights") : group.end();
    return weights != group.end() && weights->is_object() && weights->value("num_bits", Json()) == 8 &&
           weights->value("type", Json()) == "float";
  });
}

// [rows, columns] of a list of two positive numbers.
std::optional<std::pair<std::int64_t, std::int64_t>> pair_of(const Json& list) {
  if (!list.is_array() || list.size() != 2) return {};
  for (const Json& item : list) {
    if (!item.is_number_unsigned() || item.get<std::uint64_t>() == 0 || item.get<std::uint64_t>() > 1u << 20) return {};
  }
  return std::pair{list[0].get<std::int64_t>(), list[1].get<std::int64_t>()};
}

// The size of a block of weights that share a scale, where the configuration names one.
std::optional<std::pair<std::int64_t, std::int64_t>> block_size(const Json& config) {
  const auto quantization = config.find("quantization_config");
  if (quantization == config.end() || !quantization->is_object()) return {};
  if (const auto size = quantization->find("weight_block_size"); size != quantization->end()) return pair_of(*size);
  const auto groups = quantization->find("config_groups");
  if (groups == quantization->end() || !groups->is_object()) return {};
  for (const Json& group : *groups) {
    const auto weights = group.is_object() ? group.find("weights") : group.end();
    if (weights == group.end() || !weights->is_object()) continue;
    if (const auto size = weights->find("block_structure"); size != weights->end()) return pair_of(*size);
  }
  return {};
}

std::int64_t blocks_of(std::int64_t count, std::int64_t block) {
  return (count + block - 1) / block;
}

}  // namespace

void check_quantization(const ConfigReader& config) {
  if (!config.has("quantization_config")) return;
  const ConfigReader quantization = config.object("quantization_config");
  const std::string method = quantization.text("quant_method", "");
  if (method == "mxfp4") return;  // gpt-oss's experts, which the loader takes as they are
  if (method == "fp8" || method == "fbgemm_fp8") return;
  if (method == "compressed-tensors" && has_byte_floats(quantization)) return;
  config.fail(concat("weights quantised with ", method.empty() ? "an unnamed method" : quote_name(method),
                     method == "compressed-tensors" ? ", other than as 8-bit floats," : "", " are not supported; ",
                     kSupported));
}

std::string scales_name(const WeightSource& source, const std::string& weight) {
  for (const char* suffix : {"_scale_inv", "_scale"}) {
    if (source.contains(weight + suffix)) return weight + suffix;
  }
  throw InputError(concat("'", source.path(), "': tensor ", quote_name(weight), " is of FP8, and has no ",
                          quote_name(weight + "_scale"), " or ", quote_name(weight + "_scale_inv"), " beside it"));
}

ScaleGrid read_scales(const WeightSource& source, const std::string& weight, std::int64_t rows, std::int64_t cols) {
  const std::string name = scales_name(source, weight);
  const TensorData tensor = source.tensor(name);
  std::int64_t count = 1;
  for (const std::int64_t dim : tensor.shape) count *= dim;
  const auto fail = [&](const std::string& what) {
    throw InputError(concat("'", source.path(), "': tensor ", quote_name(name), " ", what));
  };
  if (is_quantized(tensor.dtype)) fail(concat("has type ", dtype_info(tensor.dtype).name, ", scales must be floats"));
  ScaleGrid grid;
  const auto block = block_size(source.config());
  if (count == 1) {
    grid = {.block_rows = rows, .block_cols = cols, .values = {}};
  } else if (block &&
             tensor.shape == std::vector<std::int64_t>{blocks_of(rows, block->first), blocks_of(cols, block->second)}) {
    grid = {.block_rows = block->first, .block_cols = block->second, .values = {}};
  } else if (count == rows && !tensor.shape.empty() && tensor.shape.front() == rows) {
    grid = {.block_rows = 1, .block_cols = cols, .values = {}};
  } else {
    fail(concat("has shape ", shape_text(tensor.shape), ": for a weight of ",
                shape_text(std::vector<std::int64_t>{rows, cols}), " it must be one number, one for each row",
                block ? concat(", or one for each block of ", block->first, " x ", block->second) : ""));
  }
  for (std::int64_t i = 0; i < count; ++i) grid.values.push_back(float_at(tensor.dtype, tensor.bytes.data(), i));
  return grid;
}

ScaleGrid take_scales(const ScaleGrid& whole, std::int64_t rows, std::int64_t cols, Cut cut, const Slice& slice,
                      const std::string& weight) {
  const bool by_rows = cut == Cut::rows;
  const std::int64_t size = by_rows ? rows : cols, block = by_rows ? whole.block_rows : whole.block_cols;
  if (block >= size || slice.count == size) {
    ScaleGrid part = whole;
    if (block >= size) (by_rows ? part.block_rows : part.block_cols) = std::max<std::int64_t>(slice.count, 1);
    return part;
  }
  const std::int64_t end = std::min(slice.first + slice.count, size);
  if (slice.first % block != 0 || (end % block != 0 && end != size)) {
    throw InputError(concat("the ", size, by_rows ? " rows" : " columns", " of ", quote_name(weight),
                            ", which have scales in blocks of ", block, ", can't be cut at ",
                            slice.first % block != 0 ? slice.first : end, ": take another number of ranks"));
  }
  const std::int64_t across = blocks_of(cols, whole.block_cols), down = blocks_of(rows, whole.block_rows);
  ScaleGrid part{.block_rows = whole.block_rows, .block_cols = whole.block_cols, .values = {}};
  const std::int64_t first = slice.first / block, count = blocks_of(slice.count, block);
  for (std::int64_t r = by_rows ? first : 0; r < (by_rows ? first + count : down); ++r) {
    for (std::int64_t c = by_rows ? 0 : first; c < (by_rows ? across : first + count); ++c) {
      const bool is_there = r < down && c < across;  // rows past the last are zeros
      part.values.push_back(is_there ? whole.values[static_cast<std::size_t>(r * across + c)] : 1.0f);
    }
  }
  return part;
}

bool is_static_scale(const std::string& name) {
  return std::ranges::any_of(
      std::initializer_list<const char*>{".input_scale", ".input_scale_ub", ".k_scale", ".v_scale", ".q_scale",
                                         ".activation_scale", ".k_proj.output_scale", ".v_proj.output_scale"},
      [&](const char* end) { return name.ends_with(end); });
}

}  // namespace minisgl
