// Python's view of the communicators. Tensors cross by DLPack.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>

#include "bind/bind.h"
#include "bind/borrowed_tensor.h"
#include "comm/nccl.h"
#include "core/error.h"

namespace py = pybind11;

namespace minisgl {
namespace {

std::unique_ptr<Communicator> make_communicator(const std::string& unique_id, int rank, int size, int device,
                                                std::int64_t max_buffer_bytes, const std::string& library) {
  NcclUniqueId id;
  if (unique_id.size() != id.size())
    throw InputError(concat("an NCCL unique id has ", id.size(), " bytes, got ", unique_id.size()));
  std::copy(unique_id.begin(), unique_id.end(), id.begin());
  py::gil_scoped_release release;
  return make_nccl_communicator(
      id, {.library = library, .rank = rank, .size = size, .device = device, .max_buffer_bytes = max_buffer_bytes});
}

void all_reduce(Communicator& self, const py::object& tensor, StreamHandle stream) {
  const BorrowedTensor data(tensor, "tensor", self.device());
  const DType dtype = data.dtype();
  py::gil_scoped_release release;
  self.all_reduce_sum(data.data(), data.count(), dtype, stream);
}

void all_gather(Communicator& self, const py::object& output_tensor, const py::object& input_tensor,
                StreamHandle stream) {
  const BorrowedTensor output(output_tensor, "output", self.device());
  const BorrowedTensor input(input_tensor, "input", self.device());
  if (output.num_bytes() != input.num_bytes() * self.size())
    throw InputError(concat("output must have ", input.num_bytes() * self.size(), " bytes, got ", output.num_bytes()));
  py::gil_scoped_release release;
  self.all_gather(input.data(), output.data(), input.num_bytes(), stream);
}

}  // namespace

void bind_comm(py::module_& module) {
  module.def("num_gpus", &num_gpus, "GPUs that this process sees; 0 without a driver and in a CPU-only build.");
  module.def(
      "nccl_unique_id",
      [](const std::string& library) {
        const NcclUniqueId id = make_nccl_unique_id(library);
        return py::bytes(id.data(), id.size());
      },
      py::arg("library") = "", "128 bytes that all ranks of one communicator need; made by rank 0.");
  py::class_<Communicator>(module, "PyNCCLCommunicator")
      .def(py::init(&make_communicator), py::arg("unique_id"), py::kw_only(), py::arg("rank"), py::arg("size"),
           py::arg("device"), py::arg("max_buffer_bytes") = 0, py::arg("library") = "",
           "Waits until every rank has called it with the same id.")
      .def_property_readonly("rank", &Communicator::rank)
      .def_property_readonly("size", &Communicator::size)
      .def_property_readonly("device", &Communicator::device)
      .def("all_reduce", &all_reduce, py::arg("tensor"), py::arg("stream") = 0,
           "Sums the tensor over the ranks, in place, on the CUDA stream with that handle.")
      .def("all_gather", &all_gather, py::arg("output"), py::arg("input"), py::arg("stream") = 0,
           "Puts every rank's input into output, rank by rank, on the CUDA stream with that handle.");
}

}  // namespace minisgl
