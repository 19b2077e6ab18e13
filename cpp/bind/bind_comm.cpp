// Python's view of the communicators. Tensors cross by DLPack.
#include <pybind11/gil_safe_call_once.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/borrowed_tensor.h"
#include "bind/communicator_handle.h"
#include "bind/plugin_communicator.h"
#include "comm/nccl.h"
#include "comm/shm.h"
#include "comm/tcp.h"
#include "core/error.h"

namespace py = pybind11;

namespace minisgl {
namespace {

// Python's classes, which are made differently.
struct ShmHandle : CommunicatorHandle {};
struct TcpHandle : CommunicatorHandle {};
struct NcclHandle : CommunicatorHandle {};
struct PluginHandle : CommunicatorHandle {};

std::chrono::milliseconds to_milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
}

ShmHandle make_shm(const std::string& name, int rank, int size, double timeout) {
  const py::gil_scoped_release release;
  return {make_shm_communicator({name, rank, size, to_milliseconds(timeout)})};
}

TcpHandle make_tcp(const std::string& address, const std::string& secret, int rank, int size, double timeout) {
  const py::gil_scoped_release release;
  return {make_tcp_communicator({address, secret, rank, size, to_milliseconds(timeout)})};
}

NcclHandle make_nccl(CommunicatorHandle& host, int device, const std::string& sums, std::int64_t max_buffer_bytes,
                     const std::string& library, double timeout) {
  const std::map<std::string, GpuSums> choices = {{"fastest", GpuSums::fastest},
                                                  {"nccl", GpuSums::nccl},
                                                  {"registered", GpuSums::registered},
                                                  {"peers", GpuSums::peers}};
  const auto choice = choices.find(sums);
  if (choice == choices.end()) throw InputError(concat("sums must be fastest, nccl, registered or peers, got ", sums));
  const py::gil_scoped_release release;
  return {make_gpu_communicator({library, device, choice->second, max_buffer_bytes, to_milliseconds(timeout)},
                                *host.communicator)};
}

// The stream of a call; none: the one that the tensor's framework works on now.
using Stream = std::optional<StreamHandle>;

StreamHandle handle_of(Stream stream, const BorrowedTensor& tensor) {
  return stream ? *stream : tensor.current_stream();
}

void all_reduce(CommunicatorHandle& self, const py::object& tensor, const std::string& op, Stream stream) {
  if (op != "sum") throw InputError(concat("op must be \"sum\", the only one that there is, got \"", op, "\""));
  Communicator& comm = *self.communicator;
  const BorrowedTensor data(tensor, "tensor", comm.device());
  const DType dtype = data.dtype();
  const StreamHandle handle = handle_of(stream, data);
  const py::gil_scoped_release release;
  comm.all_reduce_sum(data.data(), data.count(), dtype, handle);
}

void check_bytes(const BorrowedTensor& tensor, const char* name, std::int64_t num_bytes) {
  if (tensor.num_bytes() != num_bytes)
    throw InputError(concat(name, " must have ", num_bytes, " bytes, got ", tensor.num_bytes()));
}

void check_same_dtype(const py::object& output, const py::object& input) {
  const py::object expected = py::getattr(input, "dtype", py::none()), got = py::getattr(output, "dtype", py::none());
  if (!got.equal(expected))
    throw InputError(concat("output must be of the input's dtype, ", py::str(expected).cast<std::string>(), ", got ",
                            py::str(got).cast<std::string>()));
}

void all_gather(CommunicatorHandle& self, const py::object& output_tensor, const py::object& input_tensor,
                Stream stream) {
  Communicator& comm = *self.communicator;
  const BorrowedTensor output(output_tensor, "output", comm.device()), input(input_tensor, "input", comm.device());
  check_same_dtype(output_tensor, input_tensor);
  check_bytes(output, "output", input.num_bytes() * comm.size());
  const StreamHandle handle = handle_of(stream, input);
  const py::gil_scoped_release release;
  comm.all_gather(input.data(), output.data(), input.num_bytes(), handle);
}

void reduce_scatter(CommunicatorHandle& self, const py::object& output_tensor, const py::object& input_tensor,
                    Stream stream) {
  Communicator& comm = *self.communicator;
  const BorrowedTensor output(output_tensor, "output", comm.device()), input(input_tensor, "input", comm.device());
  const DType dtype = output.dtype();
  check_same_dtype(output_tensor, input_tensor);
  check_bytes(input, "input", output.num_bytes() * comm.size());
  const StreamHandle handle = handle_of(stream, input);
  const py::gil_scoped_release release;
  comm.reduce_scatter_sum(input.data(), output.data(), output.count(), dtype, handle);
}

void broadcast(CommunicatorHandle& self, const py::object& tensor, int root, Stream stream) {
  Communicator& comm = *self.communicator;
  const BorrowedTensor data(tensor, "tensor", comm.device());
  if (root < 0 || root >= comm.size()) throw InputError(concat("root must be in [0, ", comm.size(), "), got ", root));
  const StreamHandle handle = handle_of(stream, data);
  const py::gil_scoped_release release;
  comm.broadcast(data.data(), data.num_bytes(), root, handle);
}

void barrier(CommunicatorHandle& self, StreamHandle stream) {
  const py::gil_scoped_release release;
  self.communicator->barrier(stream);
}

void set_time_limit(CommunicatorHandle& self, double seconds) {
  self.communicator->set_time_limit({to_milliseconds(seconds)});
}

// The exception, with the rank as a field.
void bind_rank_failure(py::module_& module) {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> type;
  type.call_once_and_store_result([&] {
    py::exception<RankFailure> made(module, "RankFailure", PyExc_RuntimeError);
    made.doc() =
        "A collective that could not end because another rank died, left or didn't come; the message names it, and "
        "`rank` is its number, or -1 where it isn't known.";
    made.attr("rank") = -1;
    return py::object(made);
  });
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const RankFailure& failure) {
      const py::object error = type.get_stored()(failure.what());
      error.attr("rank") = failure.rank();
      PyErr_SetObject(type.get_stored().ptr(), error.ptr());
    }
  });
}

}  // namespace

void bind_comm(py::module_& module) {
  bind_rank_failure(module);
  // The first call of a process may take seconds, in which other threads have to go on.
  module.def("num_gpus", &num_gpus, py::call_guard<py::gil_scoped_release>(),
             "GPUs that this process sees; 0 without a driver and in a CPU-only build.");
  py::class_<CommunicatorHandle>(module, "Communicator", "Collectives between ranks; every rank makes the same calls.")
      .def_property_readonly("name", [](const CommunicatorHandle& self) { return self.communicator->name(); })
      .def_property_readonly("rank", [](const CommunicatorHandle& self) { return self.communicator->rank(); })
      .def_property_readonly("size", [](const CommunicatorHandle& self) { return self.communicator->size(); })
      .def_property_readonly("device", [](const CommunicatorHandle& self) { return self.communicator->device(); })
      .def("all_reduce", &all_reduce, py::arg("tensor"), py::arg("op") = "sum", py::arg("stream") = py::none())
      .def("all_gather", &all_gather, py::arg("output"), py::arg("input"), py::arg("stream") = py::none())
      .def("reduce_scatter", &reduce_scatter, py::arg("output"), py::arg("input"), py::arg("stream") = py::none())
      .def("broadcast", &broadcast, py::arg("tensor"), py::arg("root") = 0, py::arg("stream") = py::none())
      .def("barrier", &barrier, py::arg("stream") = 0)
      .def("set_time_limit", &set_time_limit, py::arg("seconds"))
      .def("begin_wait", [](CommunicatorHandle& self) { self.communicator->begin_wait(); })
      .def("end_wait", [](CommunicatorHandle& self) { self.communicator->end_wait(); });

  py::class_<ShmHandle, CommunicatorHandle>(module, "ShmCommunicator", "CPU ranks of one host.")
      .def(py::init(&make_shm), py::arg("name"), py::kw_only(), py::arg("rank"), py::arg("size"),
           py::arg("timeout") = 30.0);
  py::class_<TcpHandle, CommunicatorHandle>(module, "TcpCommunicator", "CPU ranks of several hosts.")
      .def(py::init(&make_tcp), py::arg("address"), py::kw_only(), py::arg("secret"), py::arg("rank"), py::arg("size"),
           py::arg("timeout") = 30.0);
  py::class_<NcclHandle, CommunicatorHandle>(module, "PyNCCLCommunicator",
                                             "GPU ranks, through NCCL and each other's memory.")
      .def(py::init(&make_nccl), py::arg("host"), py::kw_only(), py::arg("device"), py::arg("sums") = "fastest",
           py::arg("max_buffer_bytes") = 0, py::arg("library") = "", py::arg("timeout") = 30.0);
  py::class_<PluginHandle, CommunicatorHandle>(module, "PluginCommunicator", "A communicator written in Python.")
      .def(py::init([](py::object target, int rank, int size, int device) {
             return PluginHandle{make_plugin_communicator(std::move(target), rank, size, device)};
           }),
           py::arg("target"), py::kw_only(), py::arg("rank"), py::arg("size"), py::arg("device") = -1);
}

}  // namespace minisgl
