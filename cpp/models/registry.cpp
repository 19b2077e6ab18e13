// The families of models that can be served, named in one table.
#include "models/registry.h"

#include <array>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "io/quote.h"
#include "models/config_reader.h"
#include "models/families/families.h"

namespace minisgl {
namespace {

struct Family {
  std::string_view architecture;  // config.json's "architectures"
  std::string_view model_type;    // config.json's "model_type", and a GGUF file's architecture
  ModelSpec (*read)(const ConfigReader&);
};

constexpr std::array<Family, 4> families{{
    {"LlamaForCausalLM", "llama", read_llama},
    {"MistralForCausalLM", "mistral", read_mistral},
    {"Qwen2ForCausalLM", "qwen2", read_qwen2},
    {"Qwen3ForCausalLM", "qwen3", read_qwen3},
}};

// What the configuration calls the architecture: the class name, or the model type where there is none.
std::string architecture_name(const ConfigReader& config) {
  const nlohmann::json* list = config.find("architectures");
  if (list == nullptr || (list->is_array() && list->empty())) return config.text("model_type", "");
  if (!list->is_array() || !list->front().is_string()) {
    config.fail_value("architectures", "a list of one name");
  }
  return list->front().get<std::string>();
}

// The same model without a head, as embedding models are saved: Qwen3Model.
std::string with_head(const std::string& name) {
  constexpr std::string_view without = "Model";
  return name.ends_with(without) ? name.substr(0, name.size() - without.size()) + "ForCausalLM" : name;
}

const Family& find_family(const ConfigReader& config) {
  const std::string name = architecture_name(config), whole = with_head(name);
  for (const Family& family : families) {
    if (whole == family.architecture || name == family.model_type) return family;
  }
  std::string supported;
  for (const Family& family : families) supported += concat(supported.empty() ? "" : ", ", family.architecture);
  config.fail(concat("architecture ", quote_name(name), " is not supported; supported: ", supported));
}

void refuse_quantized_safetensors(const ConfigReader& config) {
  if (!config.has("quantization_config")) return;
  const ConfigReader quantization = config.object("quantization_config");
  config.fail(concat("weights quantised with ", quote_name(quantization.text("quant_method", "an unnamed method")),
                     " are not supported: use the model in bf16, f16 or f32, or as a GGUF file"));
}

// Embedding models that were trained so would give other embeddings.
void refuse_bidirectional_attention(const ConfigReader& config) {
  if (!config.boolean("is_causal", true) || config.boolean("use_bidirectional_attention", false)) {
    config.fail("attention to later tokens (is_causal false, use_bidirectional_attention) is not supported");
  }
}

}  // namespace

ModelSpec read_model_spec(const WeightSource& source) {
  const ConfigReader config(source.config(), concat("'", source.path(), "'"));
  const Family& family = find_family(config);
  refuse_quantized_safetensors(config);
  refuse_bidirectional_attention(config);
  ModelSpec spec = family.read(config);
  spec.family = family.model_type;
  return spec;
}

}  // namespace minisgl
