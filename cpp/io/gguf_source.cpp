// A GGUF file, or the files of a model in parts, as a source of weights.
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "io/formats.h"
#include "io/gguf_parts.h"
#include "io/gguf_vocabulary.h"
#include "io/quote.h"

namespace minisgl {
namespace {

class GgufSource : public WeightSource {
 public:
  explicit GgufSource(const std::string& path) : path_(path) {
    GgufModel model = open_gguf_model(path);
    GgufFile& file = model.file;
    mappings_ = std::move(model.mappings);
    config_ = huggingface_config(file, path);
    const auto architecture = file.metadata.at("general.architecture").get<std::string>();
    interleaved_rope_ = stores_interleaved_rope(architecture);
    for (auto& [name, tensor] : file.tensors) {
      if (is_config_tensor(name)) continue;
      const std::string public_name = huggingface_tensor_name(name, architecture);
      // The gate of the shared expert, a matrix of one row.
      if (public_name.ends_with("shared_expert_gate.weight")) tensor.shape.insert(tensor.shape.begin(), 1);
      if (!tensors_.try_emplace(public_name, std::move(tensor)).second) {
        throw InputError(concat("'", path, "' has the tensor ", quote_name(public_name), " twice"));
      }
    }
  }

  const nlohmann::json& config() const override { return config_; }
  bool contains(const std::string& name) const override { return tensors_.contains(name); }

  TensorData tensor(const std::string& name) const override {
    const auto entry = tensors_.find(name);
    if (entry == tensors_.end()) throw InputError(concat("'", path(), "' has no tensor ", quote_name(name)));
    return entry->second;
  }

  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    for (const auto& [name, tensor] : tensors_) result.push_back(name);
    return result;
  }

  std::string path() const override { return path_; }
  std::vector<std::string> files() const override {
    std::vector<std::string> result;
    for (const MappedFile& mapping : mappings_) result.push_back(mapping.identity());
    return result;
  }
  bool interleaved_rope() const override { return interleaved_rope_; }
  bool has_whole_norms() const override { return true; }
  bool names_experts_alike() const override { return true; }

 private:
  std::string path_;
  std::vector<MappedFile> mappings_;
  nlohmann::json config_;
  bool interleaved_rope_ = false;
  std::unordered_map<std::string, TensorData> tensors_;  // under Hugging Face's names
};

}  // namespace

std::unique_ptr<WeightSource> open_gguf(const std::string& path) {
  return std::make_unique<GgufSource>(path);
}

}  // namespace minisgl
