// A folder in the layout of the Hugging Face hub as a source of weights.
#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "io/formats.h"
#include "io/int4_groups.h"
#include "io/json_text.h"
#include "io/mapped_file.h"
#include "io/quote.h"
#include "io/safetensors_file.h"

namespace minisgl {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

bool file_exists(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// The file with this ending, when the folder has one: for messages about folders that can't be used.
std::optional<std::string> file_ending_with(const std::string& folder, const std::vector<std::string>& endings) {
  std::error_code error;
  for (auto entry = fs::directory_iterator(folder, error); !error && entry != fs::directory_iterator();
       entry.increment(error)) {
    for (const std::string& ending : endings) {
      if (entry->path().extension() == ending) return entry->path().filename().string();
    }
  }
  return std::nullopt;
}

class SafetensorsSource : public WeightSource {
 public:
  SafetensorsSource(std::string folder, bool with_tensors) : folder_(std::move(folder)) {
    read_config();
    if (!with_tensors) return;
    const fs::path whole = fs::path(folder_) / "model.safetensors";
    const fs::path index = fs::path(folder_) / "model.safetensors.index.json";
    if (file_exists(whole)) {
      open_whole(whole.string());
    } else if (file_exists(index)) {
      open_shards(index.string());
    } else {
      open_whole(only_weights());
    }
    rename_text_part();
    if (tensors_.contains("embed_tokens.weight") && !tensors_.contains("model.embed_tokens.weight")) add_head();
  }

  const Json& config() const override { return config_; }
  bool contains(const std::string& name) const override { return tensors_.contains(name); }

  TensorData tensor(const std::string& name) const override {
    const auto& [file, entry] = find(name);
    const auto dtype = dtype_of(entry.dtype);
    if (!dtype) {
      throw InputError(concat("'", file, "': tensor ", quote_name(name), " has dtype ", quote_name(entry.dtype),
                              ", which is not supported; supported: F32, F16, BF16, F8_E4M3"));
    }
    return {*dtype, entry.shape, entry.bytes};
  }

  StoredTensor stored(const std::string& name) const override {
    const SafetensorsEntry& entry = find(name).entry;
    return {entry.dtype, entry.shape, entry.bytes};
  }

  const SafetensorsEntry* entry(const std::string& name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : &found->second.entry;
  }

  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    for (const auto& [name, located] : tensors_) result.push_back(name);
    return result;
  }

  std::string path() const override { return folder_; }
  std::vector<std::string> files() const override {
    std::vector<std::string> result{config_.dump()};
    for (const auto& [file, mapping] : mappings_) result.push_back(mapping.identity());
    return result;
  }
  bool interleaved_rope() const override { return false; }

 private:
  struct Located {
    std::string file;
    SafetensorsEntry entry;
  };

  const Located& find(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw InputError(concat("'", folder_, "' has no tensor ", quote_name(name)));
    return found->second;
  }

  void read_config() {
    const fs::path file = fs::path(folder_) / "config.json";
    if (!file_exists(file)) {
      const auto gguf = file_ending_with(folder_, {".gguf"});
      throw InputError(concat("'", folder_, "' has no config.json",
                              gguf ? concat("; to serve a GGUF file give its own path, ", quote_name(*gguf)) : ""));
    }
    config_ = read_json_object(file.string());
    const fs::path generation = fs::path(folder_) / "generation_config.json";
    if (file_exists(generation)) config_["generation_config"] = read_json_object(generation.string());
  }

  // The folder's one file of weights, whatever its name is.
  std::string only_weights() const {
    std::vector<std::string> files;
    std::error_code error;
    for (auto entry = fs::directory_iterator(folder_, error); !error && entry != fs::directory_iterator();
         entry.increment(error)) {
      if (entry->path().extension() == ".safetensors") files.push_back(entry->path().filename().string());
    }
    if (files.empty()) fail_without_weights();
    if (files.size() > 1) {
      std::ranges::sort(files);
      throw InputError(concat("'", folder_, "' has several .safetensors files (", quote_name(files[0]), ", ",
                              quote_name(files[1]), files.size() > 2 ? ", ..." : "",
                              ") and neither model.safetensors nor model.safetensors.index.json, which says what is "
                              "in which"));
    }
    return (fs::path(folder_) / files[0]).string();
  }

  void open_whole(const std::string& file) {
    for (auto& [name, entry] : open_file(file)) tensors_.emplace(name, Located{file, entry});
  }

  // Models of text and images have the text part's tensors under a name of its own.
  void rename_text_part() {
    std::unordered_map<std::string, Located> renamed;
    for (auto& [name, located] : tensors_) renamed.emplace(text_part_name(name), std::move(located));
    tensors_ = std::move(renamed);
  }

  // A model that was saved without its head, as embedding models are: its tensors get the names of the whole model's,
  // and the embedding stands in for the head, whose logits nobody needs.
  void add_head() {
    std::unordered_map<std::string, Located> renamed;
    for (auto& [name, located] : tensors_) renamed.emplace("model." + name, std::move(located));
    tensors_ = std::move(renamed);
    config_["tie_word_embeddings"] = true;
  }

  [[noreturn]] void fail_without_weights() const {
    if (const auto other = file_ending_with(folder_, {".bin", ".pt", ".pth"})) {
      throw InputError(concat("'", folder_, "' has its weights in PyTorch's format (", quote_name(*other),
                              "), which is not supported: convert them to safetensors"));
    }
    throw InputError(concat("'", folder_, "' has no .safetensors file"));
  }

  std::map<std::string, SafetensorsEntry> open_file(const std::string& path) {
    const MappedFile& mapping = mappings_.try_emplace(path, path).first->second;
    return parse_safetensors(mapping.bytes(), path);
  }

  void open_shards(const std::string& index_path) {
    const Json index = read_json_object(index_path, {.max_bytes = std::size_t{100} << 20, .max_depth = 8});
    const auto weight_map = index.find("weight_map");
    if (weight_map == index.end() || !weight_map->is_object()) {
      throw InputError(concat("'", index_path, "' has no weight_map"));
    }
    std::map<std::string, std::map<std::string, SafetensorsEntry>> shards;
    std::vector<std::string> missing;
    for (const auto& [tensor, shard] : weight_map->items()) {
      // Only files of the folder itself: a path would let a downloaded index name any file of the machine.
      if (!shard.is_string() || fs::path(shard.get<std::string>()).filename() != shard.get<std::string>() ||
          !shard.get<std::string>().ends_with(".safetensors")) {
        throw InputError(concat("'", index_path, "' puts tensor ", quote_name(tensor),
                                " into something that is not the name of a .safetensors file"));
      }
      const std::string file = (fs::path(folder_) / shard.get<std::string>()).string();
      if (shards.try_emplace(file).second && !file_exists(file)) missing.push_back(file);
      tensors_.emplace(tensor, Located{file, {}});
    }
    if (!missing.empty()) {
      throw InputError(concat("'", index_path, "' names files of weights that are missing: '", missing.front(), "'",
                              missing.size() > 1 ? concat(" and ", missing.size() - 1, " more") : ""));
    }
    for (auto& [file, entries] : shards) entries = open_file(file);
    for (auto& [tensor, located] : tensors_) {
      const auto& entries = shards.at(located.file);
      const auto entry = entries.find(tensor);
      if (entry == entries.end()) {
        throw InputError(
            concat("'", located.file, "' has no tensor ", quote_name(tensor), ", which '", index_path, "' promises"));
      }
      located.entry = entry->second;
    }
  }

  std::string folder_;
  Json config_;
  std::map<std::string, MappedFile> mappings_;
  std::unordered_map<std::string, Located> tensors_;
};

}  // namespace

std::unique_ptr<WeightSource> open_safetensors_folder(const std::string& path, bool with_tensors) {
  auto source = std::make_unique<SafetensorsSource>(path, with_tensors);
  const auto int4 = int4_scheme(source->config(), path);
  if (!int4 || !with_tensors) return source;
  const SafetensorsSource& files = *source;
  return with_int4_groups(std::move(source), *int4, [&files](const std::string& name) { return files.entry(name); });
}

}  // namespace minisgl
