// Where a model's tensors and configuration come from, whatever the file format: one vocabulary of names and keys
// (Hugging Face's), so that a family is described once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace minisgl {

struct TensorData {
  DType dtype;
  std::vector<std::int64_t> shape;   // row-major, [out_features, in_features] for a matrix
  std::span<const std::byte> bytes;  // checked to match shape and dtype
  bool mapped = true;  // from the file; else made by the source, and there until the next tensor is asked for
};

// A tensor of any type, also of those that matrices don't have.
struct StoredTensor {
  std::string type;  // as the file calls it ("U8")
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // The model's config.json, or what a GGUF file's metadata says in the same keys.
  virtual const nlohmann::json& config() const = 0;
  virtual bool contains(const std::string& name) const = 0;
  // Throws InputError that names the file and the tensor when it is missing.
  virtual TensorData tensor(const std::string& name) const = 0;
  // The same for those who look at the shape and the dtype alone: `bytes` are the file's, in whatever order it has
  // them.
  virtual TensorData described(const std::string& name) const { return tensor(name); }
  // As the file has it, for those who know its types or compare files. Any thread may ask. Throws InputError when it is
  // missing.
  virtual StoredTensor stored(const std::string& name) const;
  virtual std::vector<std::string> names() const = 0;
  virtual std::string path() const = 0;
  // A line for each file as it was opened, which changes with what is in it; empty where there are none.
  virtual std::vector<std::string> files() const { return {}; }
  // True for files that store query and key rows for interleaved rotation (GGUF of the llama family): the loader
  // puts the rows back in halves order.
  virtual bool interleaved_rope() const = 0;
  // True for files whose norms' weights are whole, also of families that store them less 1 (GGUF of Gemma).
  virtual bool has_whole_norms() const { return false; }
  // True for files in which the experts of all families have the names that ExpertNames begins with (GGUF).
  virtual bool names_experts_alike() const { return false; }
};

// A .gguf file or a folder with config.json and *.safetensors (sharded too). Throws InputError. Without tensors a
// folder needs config.json alone, and tells nothing else.
std::unique_ptr<WeightSource> open_weights(const std::string& path, bool with_tensors = true);

}  // namespace minisgl
