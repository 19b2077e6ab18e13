// GGUF's names put into Hugging Face's words.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "io/gguf_file.h"

namespace minisgl {

// "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; an unknown name stays what it is. `architecture`:
// the file's general.architecture, as some names mean another tensor in some.
std::string huggingface_tensor_name(std::string_view name, std::string_view architecture);

// Whether such files have rows of queries and keys reordered so that neighbours rotate together.
bool stores_interleaved_rope(std::string_view architecture);

// Whether huggingface_config() has what the tensor says.
bool is_config_tensor(std::string_view name);

// The metadata of `file` under the keys of a config.json. Values keep the types that the file gives them: who reads
// the configuration checks them. Throws InputError when the architecture is missing.
nlohmann::json huggingface_config(const GgufFile& file, const std::string& path);

}  // namespace minisgl
