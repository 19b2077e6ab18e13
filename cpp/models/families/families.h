// One function a family: config.json in, spec out. Each throws InputError for values that make no sense.
#pragma once

#include "models/config_reader.h"
#include "models/model_spec.h"

namespace minisgl {

ModelSpec read_llama(const ConfigReader& config);    // Llama 2, 3, 3.x; SmolLM, SmolLM2 and others of the same form
ModelSpec read_mistral(const ConfigReader& config);  // Mistral 7B and its kin, with their sliding window; Mistral Small
ModelSpec read_ministral(const ConfigReader& config);
ModelSpec read_ministral3(const ConfigReader& config);
ModelSpec read_qwen2(const ConfigReader& config);      // Qwen 2, 2.5
ModelSpec read_qwen3(const ConfigReader& config);      // Qwen 3, dense
ModelSpec read_qwen2_moe(const ConfigReader& config);  // Qwen 1.5 and 2 with experts
ModelSpec read_qwen3_moe(const ConfigReader& config);
ModelSpec read_mixtral(const ConfigReader& config);
ModelSpec read_olmoe(const ConfigReader& config);
ModelSpec read_granite_moe(const ConfigReader& config);  // Granite 3.x with experts
ModelSpec read_gpt_oss(const ConfigReader& config);
ModelSpec read_glm4_moe(const ConfigReader& config);  // GLM-4.5, GLM-4.5-Air, GLM-4.6
ModelSpec read_phi3(const ConfigReader& config);      // Phi-3, Phi-3.5, Phi-4, Phi-4-mini
ModelSpec read_granite(const ConfigReader& config);   // Granite 3.x, dense
ModelSpec read_olmo2(const ConfigReader& config);
ModelSpec read_olmo3(const ConfigReader& config);
ModelSpec read_smollm3(const ConfigReader& config);
ModelSpec read_glm(const ConfigReader& config);      // GLM-4-9B, GLM-Edge
ModelSpec read_glm4(const ConfigReader& config);     // GLM-4-0414, GLM-Z1
ModelSpec read_cohere(const ConfigReader& config);   // Command R
ModelSpec read_cohere2(const ConfigReader& config);  // Command R7B, Command A
ModelSpec read_gemma(const ConfigReader& config);
ModelSpec read_gemma2(const ConfigReader& config);
ModelSpec read_gemma3(const ConfigReader& config);  // the text part

}  // namespace minisgl
