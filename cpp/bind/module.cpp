// The Python module minisgl._native.
#include <pybind11/pybind11.h>

#include "bind/bind.h"
#include "core/error.h"
#include "core/log.h"
#include "engine/device.h"
#include "gemm/gemm.h"

namespace py = pybind11;

PYBIND11_MODULE(_native, module) {
  module.doc() = "minisgl's engine. Internal: minisgl.LLM and minisgl-serve are the ways to use it.";
  py::register_exception<minisgl::InputError>(module, "InputError", PyExc_ValueError).doc() =
      "What the user gave cannot work; the message is one sentence to be shown as it is.";

  module.def(
      "set_log",
      [](int least, bool json, const std::string& process) {
        minisgl::set_log(static_cast<minisgl::LogLevel>(least), json, process);
      },
      py::arg("least"), py::arg("json"), py::arg("process"),
      "What the native code writes to the standard error: lines of the level 0 (debug) to 3 (error) and above, as text "
      "or as JSON objects, with the name of this process.");
  module.def("cpu_isa", &minisgl::cpu_isa_name, "Instruction set that the CPU kernels were chosen for.");
  module.def(
      "build_info",
      [] {
        py::dict info;
        info["cuda"] = MINISGL_CUDA_VERSION;
        info["nccl"] = MINISGL_NCCL_VERSION;
        info["compiler"] = __VERSION__;
        info["version"] = MINISGL_VERSION;
        return info;
      },
      "Versions that the module was built with: cuda and nccl (empty in a CPU-only build), compiler, version.");
  module.def(
      "measure_read_bandwidth",
      [](int num_threads, const std::string& device) {
        return minisgl::make_device(device, num_threads)->measure_read_bandwidth();
      },
      py::arg("num_threads"), py::arg("device") = "cpu", py::call_guard<py::gil_scoped_release>(),
      "Bytes per second that a device (on a CPU: so many threads) reads from its memory, here and now: the ceiling for "
      "benchmarks.");

  minisgl::bind_comm(module);  // first: the others take communicators
  minisgl::bind_engine(module);
  minisgl::bind_model(module);
  minisgl::bind_layers(module);
  minisgl::bind_routing(module);
}
