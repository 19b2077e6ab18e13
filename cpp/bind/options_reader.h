// A Python dict into an engine's options.
#pragma once

#include <pybind11/pybind11.h>

#include "engine/options.h"

namespace minisgl {

// Keys are the fields of EngineOptions. Throws TypeError for a wrong type or an unknown key, and ValueError for a
// number that the field can't hold; both name the field. What a value means is checked where it is used.
EngineOptions read_options(const pybind11::dict& fields);

}  // namespace minisgl
