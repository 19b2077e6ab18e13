// A Python dict into a Request: every field typed and bounded here, its meaning checked by the engine.
#pragma once

#include <pybind11/pybind11.h>

#include "engine/request.h"

namespace minisgl {

// Keys are the fields of Request with those of SamplingParams flattened in; id and prompt are required. Throws
// TypeError for a wrong type or an unknown key and ValueError for a missing key or a number that the field can't hold;
// both name the field.
Request read_request(const pybind11::dict& fields);

}  // namespace minisgl
