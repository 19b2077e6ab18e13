// Pairs are found by the names of the projections that the model was loaded by, and cut as those are.
#include "models/adapter_loader.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/float_at.h"
#include "io/json_text.h"
#include "io/mapped_file.h"
#include "io/quote.h"
#include "io/safetensors_file.h"
#include "io/tensor_layout.h"
#include "models/adapter_config.h"

namespace minisgl {
namespace {

constexpr std::array kMatrices{ExpertMatrix::gate, ExpertMatrix::up, ExpertMatrix::down};

// The file's two matrices of one module, row-major.
struct ModulePair {
  const SafetensorsEntry* down = nullptr;  // lora_A [rank, inputs]
  const SafetensorsEntry* up = nullptr;    // lora_B [outputs, rank]
  bool is_used = false;
};

struct Names {
  std::string module;  // as the model has it
  bool is_down;
};

// "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", the text part of a model of several named as elsewhere.
Names names_of(const std::string& tensor, const std::string& file) {
  constexpr std::string_view before = "base_model.model.";
  for (const auto& [ending, is_down] : {std::pair{".lora_A.weight", true}, {".lora_B.weight", false}}) {
    if (!tensor.starts_with(before) || !tensor.ends_with(ending)) continue;
    return {text_part_name(tensor.substr(before.size(), tensor.size() - before.size() - std::strlen(ending))), is_down};
  }
  throw InputError(concat("'", file, "': tensor ", quote_name(tensor),
                          " is no lora_A or lora_B of a linear layer, and "
                          "nothing else is supported"));
}

class AdapterReader {
 public:
  AdapterReader(const std::string& path, std::int64_t max_rank, ExpertCut expert_cut, const Device& device)
      : folder_(path),
        file_((std::filesystem::path(path) / "adapter_model.safetensors").string()),
        config_json_(read_config(path)),
        config_(ConfigReader(config_json_, concat("'", config_path(path), "'"))),
        max_rank_(max_rank),
        expert_cut_(expert_cut),
        device_(device),
        mapped_(file_),
        entries_(parse_safetensors(mapped_.bytes(), file_)) {
    for (const auto& [name, entry] : entries_) {
      const auto [module, is_down] = names_of(name, file_);
      if (entry.dtype != "F32" && entry.dtype != "F16" && entry.dtype != "BF16") {
        throw InputError(concat("'", file_, "': tensor ", quote_name(name), " has type ", quote_name(entry.dtype),
                                ", not F32, F16 or BF16"));
      }
      (is_down ? modules_[module].down : modules_[module].up) = &entry;
    }
    if (modules_.empty()) throw InputError(concat("'", file_, "' has no tensors"));
  }

  void read(const AdapterTarget& target, const ModelSpec& spec) {
    target.linear != nullptr ? read_linear(target) : read_experts(target, spec);
  }

  // All that was read, where nothing is left.
  std::vector<AdapterPair> finish() {
    for (const auto& [module, pair] : modules_) {
      if (!pair.is_used) {
        throw InputError(
            concat("'", file_, "': ", quote_name(module), " is no layer of the model that adapters change"));
      }
    }
    return std::move(pairs_);
  }

 private:
  static std::string config_path(const std::string& path) {
    return (std::filesystem::path(path) / "adapter_config.json").string();
  }
  static nlohmann::json read_config(const std::string& path) {
    std::error_code ignored;
    if (!std::filesystem::is_directory(path, ignored)) {
      throw InputError(concat("'", path, "' is no folder: an adapter is one, with adapter_config.json and ",
                              "adapter_model.safetensors in it"));
    }
    return read_json_object(config_path(path));
  }

  void read_linear(const AdapterTarget& target) {
    std::int64_t first_output = 0;
    for (const ProjectionRequest& request : target.projections) {
      const bool by_rows = shard_rule(request.role).cut == Cut::rows;
      const Slice slice = slice_of(request, device_.rank(), device_.num_ranks());
      const Slice all_outputs{0, request.out_features}, all_inputs{0, request.in_features};
      const Slice outputs = by_rows ? slice : all_outputs, inputs = by_rows ? all_inputs : slice;
      const bool is_fused = !request.fused.name.empty();
      const std::string& module = is_fused ? request.fused.name : request.name;
      const std::int64_t num_rows = is_fused ? request.fused.num_rows : request.out_features;
      if (const ModulePair* const pair = find(module, num_rows, request.in_features)) {
        std::vector<std::int64_t> rows;
        for (std::int64_t i = 0; i < outputs.count; ++i)
          rows.push_back(request.fused.first_row + file_row(request, outputs.first + i));
        pairs_.push_back(make_pair(module, *pair, rows, inputs));
        pairs_.back().linear = target.linear;
        pairs_.back().first_output = first_output;
      }
      first_output += outputs.count;
    }
  }

  void read_experts(const AdapterTarget& target, const ModelSpec& spec) {
    const ExpertsShape& shape = target.experts->shape();
    const ExpertNames& names = spec.experts.names;
    const std::int64_t intermediate = spec.experts.intermediate_size;
    for (std::int64_t expert = 0; expert < shape.all_experts; ++expert) {
      for (const ExpertMatrix which : kMatrices) {
        const bool is_down = which == ExpertMatrix::down;
        const std::string& own = is_down ? names.down : which == ExpertMatrix::gate ? names.gate : names.up;
        const std::string module = concat(target.prefix, expert, ".", own);
        const std::int64_t num_outputs = is_down ? spec.hidden_size : intermediate;
        const std::int64_t num_inputs = is_down ? intermediate : spec.hidden_size;
        const ModulePair* const pair = find(module, num_outputs, num_inputs);
        const std::int64_t place = expert - shape.first_expert;
        if (pair == nullptr || place < 0 || place >= shape.num_experts) continue;
        const Slice cut{expert_cut_ == ExpertCut::width ? device_.rank() * shape.intermediate_size : 0,
                        shape.intermediate_size};
        const Slice outputs = is_down ? Slice{0, num_outputs} : cut, inputs = is_down ? cut : Slice{0, num_inputs};
        std::vector<std::int64_t> rows;
        for (std::int64_t i = 0; i < outputs.count; ++i) rows.push_back(outputs.first + i);
        AdapterPair& made = pairs_.emplace_back(make_pair(module, *pair, rows, inputs));
        made.experts = target.experts;
        made.expert = place;
        made.matrix = which;
        made.first_output = which == ExpertMatrix::up ? shape.intermediate_size : 0;
      }
    }
  }

  // The module's matrices, checked; null where the adapter leaves it as it is.
  const ModulePair* find(const std::string& module, std::int64_t outputs, std::int64_t inputs) {
    const auto found = modules_.find(module);
    if (found == modules_.end()) return nullptr;
    ModulePair& pair = found->second;
    for (const auto& [entry, name] : {std::pair{pair.down, "lora_A"}, {pair.up, "lora_B"}}) {
      if (entry == nullptr) throw InputError(concat("'", file_, "': ", quote_name(module), " has no ", name));
    }
    const std::int64_t rank = config_.rank(module);
    if (rank > max_rank_) {
      throw InputError(concat("'", config_path(folder_), "': the rank of ", quote_name(module), " is ", rank,
                              ", --max-lora-rank is ", max_rank_));
    }
    check_shape(module, "lora_A", *pair.down, {rank, inputs});
    check_shape(module, "lora_B", *pair.up, {outputs, rank});
    pair.is_used = true;
    return &pair;
  }

  void check_shape(const std::string& module, const char* name, const SafetensorsEntry& entry,
                   const std::vector<std::int64_t>& wanted) const {
    if (entry.shape == wanted) return;
    throw InputError(concat("'", file_, "': ", name, " of ", quote_name(module), " has shape ", shape_text(entry.shape),
                            ", the model and adapter_config.json ask for ", shape_text(wanted)));
  }

  AdapterPair make_pair(const std::string& module, const ModulePair& pair, std::span<const std::int64_t> rows,
                        const Slice& inputs) const {
    const std::int64_t rank = config_.rank(module), all_inputs = pair.down->shape[1];
    const auto scale = static_cast<float>(config_.scale(module));
    const DType down = *dtype_of(pair.down->dtype), up = *dtype_of(pair.up->dtype);
    AdapterPair made{.rank = rank, .inputs = inputs.count, .outputs = std::ssize(rows)};
    made.down.reserve(static_cast<std::size_t>(rank * inputs.count));
    for (std::int64_t j = 0; j < rank; ++j) {
      for (std::int64_t i = 0; i < inputs.count; ++i) {
        made.down.push_back(
            checked(module, float_at(down, pair.down->bytes.data(), j * all_inputs + inputs.first + i)));
      }
    }
    made.up.reserve(rows.size() * static_cast<std::size_t>(rank));
    for (const std::int64_t row : rows) {
      for (std::int64_t j = 0; j < rank; ++j) {
        made.up.push_back(checked(module, float_at(up, pair.up->bytes.data(), row * rank + j)) * scale);
      }
    }
    return made;
  }

  // A value that isn't finite would be in every answer.
  float checked(const std::string& module, float value) const {
    if (std::isfinite(value)) return value;
    throw InputError(concat("'", file_, "': ", quote_name(module), " holds ", value));
  }

  std::string folder_, file_;
  nlohmann::json config_json_;
  AdapterConfig config_;
  std::int64_t max_rank_;
  ExpertCut expert_cut_;
  const Device& device_;
  MappedFile mapped_;
  std::map<std::string, SafetensorsEntry> entries_;
  std::map<std::string, ModulePair> modules_;
  std::vector<AdapterPair> pairs_;
};

}  // namespace

std::shared_ptr<const Adapter> load_adapter(const std::string& path, std::int64_t max_rank, const ModelSpec& spec,
                                            std::span<const AdapterTarget> targets, DType weight_dtype,
                                            ExpertCut expert_cut, Device& device) {
  if (!device.takes_adapters()) {
    throw InputError(concat("'", path, "': ", device.device_name(), " takes no adapters"));
  }
  AdapterReader reader(path, max_rank, expert_cut, device);
  for (const AdapterTarget& target : targets) reader.read(target, spec);
  return device.make_adapter(reader.finish(), weight_dtype == DType::f32 ? DType::f32 : DType::bf16);
}

}  // namespace minisgl
