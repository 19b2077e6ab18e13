// One function a family: config.json in, spec out. Each throws InputError for values that make no sense.
#pragma once

#include "models/config_reader.h"
#include "models/model_spec.h"

namespace minisgl {

ModelSpec read_llama(const ConfigReader& config);    // Llama 2, 3, 3.x; SmolLM, SmolLM2 and others of the same form
ModelSpec read_mistral(const ConfigReader& config);  // Mistral 7B and its kin, with their sliding window
ModelSpec read_qwen2(const ConfigReader& config);    // Qwen 2, 2.5
ModelSpec read_qwen3(const ConfigReader& config);    // Qwen 3, dense

}  // namespace minisgl
