// What each binding file adds to the module, called by module.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace minisgl {

void bind_comm(pybind11::module_& module);
void bind_engine(pybind11::module_& module);
void bind_layers(pybind11::module_& module);
void bind_model(pybind11::module_& module);
void bind_routing(pybind11::module_& module);

}  // namespace minisgl
