// The families of models that can be served, named in one table.
#include "models/registry.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "io/int4_groups.h"
#include "io/quote.h"
#include "models/config_reader.h"
#include "models/families/families.h"
#include "models/quantization.h"

namespace minisgl {
namespace {

struct Family {
  std::string_view architecture;  // config.json's "architectures"
  std::string_view model_type;    // config.json's "model_type", and a GGUF file's architecture
  ModelSpec (*read)(const ConfigReader&);
};

constexpr std::array<Family, 26> families{{
    {"LlamaForCausalLM", "llama", read_llama},
    {"MistralForCausalLM", "mistral", read_mistral},
    {"Qwen2ForCausalLM", "qwen2", read_qwen2},
    {"Qwen3ForCausalLM", "qwen3", read_qwen3},
    {"Qwen2MoeForCausalLM", "qwen2_moe", read_qwen2_moe},
    {"Qwen3MoeForCausalLM", "qwen3_moe", read_qwen3_moe},
    {"MixtralForCausalLM", "mixtral", read_mixtral},
    {"OlmoeForCausalLM", "olmoe", read_olmoe},
    {"GraniteMoeForCausalLM", "granitemoe", read_granite_moe},
    {"GraniteMoeSharedForCausalLM", "granitemoeshared", read_granite_moe},
    {"GptOssForCausalLM", "gpt_oss", read_gpt_oss},
    {"Glm4MoeForCausalLM", "glm4_moe", read_glm4_moe},
    {"Phi3ForCausalLM", "phi3", read_phi3},
    {"GraniteForCausalLM", "granite", read_granite},
    {"Olmo2ForCausalLM", "olmo2", read_olmo2},
    {"Olmo3ForCausalLM", "olmo3", read_olmo3},
    {"SmolLM3ForCausalLM", "smollm3", read_smollm3},
    {"MinistralForCausalLM", "ministral", read_ministral},
    {"Ministral3ForCausalLM", "ministral3", read_ministral3},
    {"GlmForCausalLM", "glm", read_glm},
    {"Glm4ForCausalLM", "glm4", read_glm4},
    {"CohereForCausalLM", "cohere", read_cohere},
    {"Cohere2ForCausalLM", "cohere2", read_cohere2},
    {"GemmaForCausalLM", "gemma", read_gemma},
    {"Gemma2ForCausalLM", "gemma2", read_gemma2},
    {"Gemma3ForCausalLM", "gemma3_text", read_gemma3},
}};

// Models of text and images whose text part is one of the families: its configuration is text_config.
constexpr std::array<std::string_view, 2> with_vision{"Mistral3ForConditionalGeneration",
                                                      "Gemma3ForConditionalGeneration"};

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
  for (const std::string_view whole : with_vision) supported += concat(", ", whole, " (its text)");
  config.fail(concat("architecture ", quote_name(name), " is not supported; supported: ", supported));
}

// The configuration of the text part, with what stands beside it for the whole model.
nlohmann::json text_config(const nlohmann::json& config) {
  const auto names = config.find("architectures"), text = config.find("text_config");
  if (names == config.end() || !names->is_array() || names->empty() || !names->front().is_string()) return config;
  const bool has_vision = std::ranges::find(with_vision, names->front().get<std::string>()) != with_vision.end();
  if (!has_vision || text == config.end() || !text->is_object()) return config;
  nlohmann::json merged = *text;
  merged.erase("architectures");  // the model type names the family
  for (const auto& [key, value] : config.items()) {
    if (key != "architectures" && key != "text_config") merged.emplace(key, value);
  }
  if (const auto tied = config.find("tie_word_embeddings"); tied != config.end() && *tied == true) {
    merged["tie_word_embeddings"] = true;
  }
  return merged;
}

// Embedding models that were trained so would give other embeddings.
void refuse_bidirectional_attention(const ConfigReader& config) {
  if (!config.boolean("is_causal", true) || config.boolean("use_bidirectional_attention", false)) {
    config.fail("attention to later tokens (is_causal false, use_bidirectional_attention) is not supported");
  }
}

}  // namespace

ModelSpec read_model_spec(const WeightSource& source) {
  const nlohmann::json values = text_config(source.config());
  const ConfigReader config(values, concat("'", source.path(), "'"));
  const Family& family = find_family(config);
  if (!int4_scheme(source.config(), source.path())) check_quantization(config);
  refuse_bidirectional_attention(config);
  ModelSpec spec = family.read(config);
  spec.family = family.model_type;
  if (source.has_whole_norms()) spec.norm_offset = 0.0;
  if (source.names_experts_alike()) spec.experts.names = {};
  spec.rope.interleaved = spec.rope.interleaved || source.interleaved_rope();
  return spec;
}

}  // namespace minisgl
