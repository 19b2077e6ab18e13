// The families of models that can be served, named in one table.
#pragma once

#include "io/weight_source.h"
#include "models/model_spec.h"

namespace minisgl {

// What `source` holds, from its configuration. Throws InputError for an architecture that the table doesn't name, for
// quantised safetensors, and for numbers out of range.
ModelSpec read_model_spec(const WeightSource& source);

}  // namespace minisgl
