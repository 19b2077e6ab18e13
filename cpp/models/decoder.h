// The forward pass of a decoder (Llama's form), whose layers have an MLP each, or experts.
#pragma once

#include <memory>

#include "kernels/device.h"
#include "models/decoder_weights.h"
#include "models/model.h"
#include "models/model_shard.h"
#include "models/model_spec.h"

namespace minisgl {

// A decoder over `weights`, which `device` made; it outlives the model.
std::unique_ptr<Model> make_decoder(ModelSpec spec, DecoderWeights weights, Device& device,
                                    ExpertCut expert_cut = ExpertCut::width);

}  // namespace minisgl
