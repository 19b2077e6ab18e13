// Python's view of the communicators. Tensors cross by DLPack.
#include <pybind11/gil_safe_call_once.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
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
struct GpuHandle : CommunicatorHandle {};
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

NcclHandle make_nccl(const std::string& unique_id, int rank, int size, int device, std::int64_t max_buffer_bytes,
                     const std::string& library, const std::vector<pid_t>& pids, double timeout) {
  NcclUniqueId id;
  if (unique_id.size() != id.size())
    throw InputError(concat("an NCCL unique id has ", id.size(), " bytes, got ", unique_id.size()));
  std::copy(unique_id.begin(), unique_id.end(), id.begin());
  const py::gil_scoped_release release;
  return {make_nccl_communicator(id, {library, rank, size, device, max_buffer_bytes, pids, to_milliseconds(timeout)})};
}

GpuHandle make_gpu(CommunicatorHandle& host, int device, const std::string& peer_sums, std::int64_t max_buffer_bytes,
                   const std::string& library, double timeout) {
  const std::map<std::string, PeerSums> choices = {
      {"never", PeerSums::never}, {"where_faster", PeerSums::where_faster}, {"always", PeerSums::always}};
  const auto choice = choices.find(peer_sums);
  if (choice == choices.end())
    throw InputError(concat("peer_sums must be never, where_faster or always, got ", peer_sums));
  const py::gil_scoped_release release;
  Communicator& ranks = *host.communicator;
  return {make_gpu_communicator(
      {library, ranks.rank(), ranks.size(), device, max_buffer_bytes, {}, to_milliseconds(timeout)}, ranks,
      choice->second)};
}

void all_reduce(CommunicatorHandle& self, const py::object& tensor, StreamHandle stream) {
  const BorrowedTensor data(tensor, "tensor", self.communicator->device());
  const DType dtype = data.dtype();
  const py::gil_scoped_release release;
  self.communicator->all_reduce_sum(data.data(), data.count(), dtype, stream);
}

void check_bytes(const BorrowedTensor& tensor, const char* name, std::int64_t num_bytes) {
  if (tensor.num_bytes() != num_bytes)
    throw InputError(concat(name, " must have ", num_bytes, " bytes, got ", tensor.num_bytes()));
}

void all_gather(CommunicatorHandle& self, const py::object& output_tensor, const py::object& input_tensor,
                StreamHandle stream) {
  Communicator& comm = *self.communicator;
  const BorrowedTensor output(output_tensor, "output", comm.device()), input(input_tensor, "input", comm.device());
  check_bytes(output, "output", input.num_bytes() * comm.size());
  const py::gil_scoped_release release;
  comm.all_gather(input.data(), output.data(), input.num_bytes(), stream);
}

void reduce_scatter(CommunicatorHandle& self, const py::object& output_tensor, const py::object& input_tensor,
                    StreamHandle stream) {
  Communicator& comm = *self.communicator;
  const BorrowedTensor output(output_tensor, "output", comm.device()), input(input_tensor, "input", comm.device());
  const DType dtype = output.dtype();
  if (input.dtype() != dtype) throw InputError("output and input must have one dtype");
  check_bytes(input, "input", output.num_bytes() * comm.size());
  const py::gil_scoped_release release;
  comm.reduce_scatter_sum(input.data(), output.data(), output.count(), dtype, stream);
}

void broadcast(CommunicatorHandle& self, const py::object& tensor, int root, StreamHandle stream) {
  Communicator& comm = *self.communicator;
  const BorrowedTensor data(tensor, "tensor", comm.device());
  if (root < 0 || root >= comm.size()) throw InputError(concat("root must be in [0, ", comm.size(), "), got ", root));
  const py::gil_scoped_release release;
  comm.broadcast(data.data(), data.num_bytes(), root, stream);
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
  module.def(
      "nccl_unique_id",
      [](const std::string& library) {
        const NcclUniqueId id = [&] {
          const py::gil_scoped_release release;
          return make_nccl_unique_id(library);
        }();
        return py::bytes(id.data(), id.size());
      },
      py::arg("library") = "", "128 bytes that all ranks of one communicator need; made by rank 0.");

  py::class_<CommunicatorHandle>(module, "Communicator", "Collectives between ranks; every rank makes the same calls.")
      .def_property_readonly("name", [](const CommunicatorHandle& self) { return self.communicator->name(); })
      .def_property_readonly("rank", [](const CommunicatorHandle& self) { return self.communicator->rank(); })
      .def_property_readonly("size", [](const CommunicatorHandle& self) { return self.communicator->size(); })
      .def_property_readonly("device", [](const CommunicatorHandle& self) { return self.communicator->device(); })
      .def("all_reduce", &all_reduce, py::arg("tensor"), py::arg("stream") = 0)
      .def("all_gather", &all_gather, py::arg("output"), py::arg("input"), py::arg("stream") = 0)
      .def("reduce_scatter", &reduce_scatter, py::arg("output"), py::arg("input"), py::arg("stream") = 0)
      .def("broadcast", &broadcast, py::arg("tensor"), py::arg("root") = 0, py::arg("stream") = 0)
      .def(
          "barrier", [](CommunicatorHandle& self, StreamHandle stream) { self.communicator->barrier(stream); },
          py::arg("stream") = 0, py::call_guard<py::gil_scoped_release>())
      .def("begin_wait", [](CommunicatorHandle& self) { self.communicator->begin_wait(); })
      .def("end_wait", [](CommunicatorHandle& self) { self.communicator->end_wait(); });

  py::class_<ShmHandle, CommunicatorHandle>(module, "ShmCommunicator", "CPU ranks of one host.")
      .def(py::init(&make_shm), py::arg("name"), py::kw_only(), py::arg("rank"), py::arg("size"),
           py::arg("timeout") = 30.0);
  py::class_<TcpHandle, CommunicatorHandle>(module, "TcpCommunicator", "CPU ranks of several hosts.")
      .def(py::init(&make_tcp), py::arg("address"), py::kw_only(), py::arg("secret"), py::arg("rank"), py::arg("size"),
           py::arg("timeout") = 30.0);
  py::class_<NcclHandle, CommunicatorHandle>(module, "PyNCCLCommunicator", "GPU ranks, through NCCL alone.")
      .def(py::init(&make_nccl), py::arg("unique_id"), py::kw_only(), py::arg("rank"), py::arg("size"),
           py::arg("device"), py::arg("max_buffer_bytes") = 0, py::arg("library") = "",
           py::arg("pids") = std::vector<pid_t>(), py::arg("timeout") = 30.0);
  py::class_<GpuHandle, CommunicatorHandle>(module, "GpuCommunicator",
                                            "GPU ranks, through peer memory where that is faster, else NCCL.")
      .def(py::init(&make_gpu), py::arg("host"), py::kw_only(), py::arg("device"),
           py::arg("peer_sums") = "where_faster", py::arg("max_buffer_bytes") = 0, py::arg("library") = "",
           py::arg("timeout") = 30.0);
  py::class_<PluginHandle, CommunicatorHandle>(module, "PluginCommunicator", "A communicator written in Python.")
      .def(py::init([](py::object target, int rank, int size, int device) {
             return PluginHandle{make_plugin_communicator(std::move(target), rank, size, device)};
           }),
           py::arg("target"), py::kw_only(), py::arg("rank"), py::arg("size"), py::arg("device") = -1);
}

}  // namespace minisgl
