// Adapters: from a folder in PEFT's form to what a device adds to a model's products.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/device.h"
#include "models/model_shard.h"
#include "models/model_spec.h"
#include "models/weight_loader.h"

namespace minisgl {

// adapter_config.json and adapter_model.safetensors in the folder `path`, as the part of the device's rank. Every
// tensor must belong to a layer of `targets` and have its shape; layers without tensors are left as they are. Throws
// InputError, one sentence with the file, the value and the limit.
std::shared_ptr<const Adapter> load_adapter(const std::string& path, std::int64_t max_rank, const ModelSpec& spec,
                                            std::span<const AdapterTarget> targets, DType weight_dtype,
                                            ExpertCut expert_cut, Device& device);

}  // namespace minisgl
