// A communicator written in Python, for debugging: the one place where native code calls Python.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "comm/communicator.h"

namespace minisgl {

// target: an object with all_reduce(data, stream), all_gather(input, output, stream), reduce_scatter(input, output,
// stream), broadcast(data, root, stream) and barrier(stream), which get one-dimensional DLPack capsules (of bytes where
// nothing is summed) that are good for the call. device: -1 for CPU ranks.
std::shared_ptr<Communicator> make_plugin_communicator(pybind11::object target, int rank, int size, int device);

}  // namespace minisgl
