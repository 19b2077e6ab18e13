// Python's view of the sharded linear layers, outside an engine: the table of cuts, and products of torch's tensors
// where they lie. What weights a layer has and what becomes of its result stands in minisgl/layers.
#include <pthread.h>
#include <pybind11/gil_safe_call_once.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "bind/bind.h"
#include "bind/borrowed_tensor.h"
#include "bind/weight_watch.h"
#include "core/error.h"
#include "gemm/cpu_products.h"
#include "gemm/tensor_product.h"
#include "io/tensor_layout.h"
#include "layers/sharding.h"

namespace py = pybind11;

namespace minisgl {
namespace {

// What all layers of the process compute with. Never destroyed: neither threads nor a GPU's handles can be given back
// while an interpreter ends.
CpuProducts& cpu_products() {
  static auto& products = *[] {
    pthread_atfork([] { cpu_products().before_fork(); }, [] { cpu_products().after_fork(); },
                   [] { cpu_products().after_fork(); });
    return new CpuProducts;
  }();
  return products;
}

GpuProducts& gpu_products(int device) {
  static auto& mutex = *new std::mutex;
  static auto& made = *new std::map<int, std::unique_ptr<GpuProducts>>;
  const std::lock_guard lock(mutex);
  std::unique_ptr<GpuProducts>& products = made[device];
  if (!products) products = make_gpu_products(device);
  return *products;
}

// What a product asks of torch, looked up once.
struct Torch {
  py::object tensor_type = py::module_::import("torch").attr("Tensor");
  py::object is_grad_enabled = py::module_::import("torch").attr("is_grad_enabled");
  py::object get_num_threads = py::module_::import("torch").attr("get_num_threads");
  py::str new_empty = intern("new_empty");
  py::str requires_grad = intern("requires_grad");

  static py::str intern(const char* name) { return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name)); }
};

const Torch& torch() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Torch> stored;
  return stored.call_once_and_store_result([] { return Torch(); }).get_stored();
}

void check_argument(py::handle tensor, const char* name) {
  if (!PyObject_TypeCheck(tensor.ptr(), reinterpret_cast<PyTypeObject*>(torch().tensor_type.ptr())))
    throw py::type_error(concat(name, " must be a torch.Tensor, got ", Py_TYPE(tensor.ptr())->tp_name));
  if (py::getattr(tensor, torch().requires_grad).ptr() == Py_True && torch().is_grad_enabled().cast<bool>())
    throw InputError(concat(name,
                            " requires a gradient, and these layers have none: call them under torch.no_grad() or "
                            "torch.inference_mode()"));
}

void require_shape(const BorrowedTensor& tensor, std::span<const std::int64_t> shape) {
  if (!std::ranges::equal(tensor.shape(), shape))
    throw InputError(concat(tensor.name(), " must be ", shape_text(shape), ", got ", shape_text(tensor.shape())));
}

// All tensors of a product are where the weight is, and of its dtype.
void require_like(const BorrowedTensor& tensor, const BorrowedTensor& weight) {
  if (tensor.device() != weight.device())
    throw InputError(concat(tensor.name(), " is ", place_text(tensor.device()), ", the layer's weight ",
                            place_text(weight.device())));
  if (tensor.dtype() != weight.dtype())
    throw InputError(concat(tensor.name(), " is ", framework_name(tensor.dtype()), ", the layer's weight ",
                            framework_name(weight.dtype())));
}

py::tuple with_last(std::span<const std::int64_t> shape, std::int64_t last) {
  py::tuple sizes(shape.size());
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) sizes[i] = shape[i];
  sizes[shape.size() - 1] = last;
  return sizes;
}

// A layer's product, and on a CPU the packed form of its weight.
class LinearProduct {
 public:
  LinearProduct(std::int64_t inputs, std::int64_t outputs) : inputs_(inputs), outputs_(outputs) { torch(); }
  std::int64_t inputs() const { return inputs_; }
  std::int64_t outputs() const { return outputs_; }

  py::object run(py::object x, const py::object& weight, const py::object& bias) {
    check_argument(x, "input");
    check_argument(weight, "weight");
    const BorrowedTensor matrix = borrow_dense(weight, "weight", std::array{outputs_, inputs_});
    const BorrowedTensor rows = borrow_rows(x, matrix);
    const void* added = nullptr;
    if (!bias.is_none()) {
      check_argument(bias, "bias");
      const BorrowedTensor vector = borrow_dense(bias, "bias", std::array{outputs_});
      require_like(vector, matrix);
      added = vector.data();
    }
    py::object y = weight.attr(torch().new_empty)(with_last(rows.shape(), outputs_));
    const BorrowedTensor result(y, "output");
    const TensorProduct product{.weights = matrix.data(),
                                .bias = added,
                                .x = rows.data(),
                                .y = result.data(),
                                .dtype = matrix.dtype(),
                                .rows = rows.count() / inputs_,
                                .outputs = outputs_,
                                .inputs = inputs_};
    if (product.rows > 0) multiply(product, weight, matrix);
    return y;
  }

 private:
  static BorrowedTensor borrow_dense(py::handle tensor, const char* name, std::span<const std::int64_t> shape) {
    const BorrowedTensor borrowed(tensor, name);
    require_shape(borrowed, shape);
    borrowed.require_contiguous();
    return borrowed;
  }

  // x [..., inputs], which becomes a dense copy where it is none.
  BorrowedTensor borrow_rows(py::object& x, const BorrowedTensor& matrix) const {
    const BorrowedTensor rows(x, "input");
    if (rows.shape().empty() || rows.shape().back() != inputs_)
      throw InputError(
          concat("input must have ", inputs_, " features in its last dimension, got ", shape_text(rows.shape())));
    require_like(rows, matrix);
    if (rows.is_contiguous()) return rows;
    x = x.attr("contiguous")();
    return {x, "input"};
  }

  void multiply(const TensorProduct& product, py::handle weight, const BorrowedTensor& matrix) {
    if (matrix.device() != BorrowedTensor::kHost) {
      packed_.reset();  // of a weight that has moved
      const StreamHandle stream = matrix.current_stream();
      const py::gil_scoped_release release;
      return gpu_products(matrix.device()).run(product, stream);
    }
    const int num_threads = torch().get_num_threads().cast<int>();
    if (!packed_ || !watch_.unchanged(weight, matrix)) pack(product, weight, matrix, num_threads);
    const std::shared_ptr<const PackedMatrix> packed = packed_;  // another thread may renew it meanwhile
    const py::gil_scoped_release release;
    cpu_products().run(*packed, product, num_threads);
  }

  void pack(const TensorProduct& product, py::handle weight, const BorrowedTensor& matrix, int num_threads) {
    packed_.reset();
    WeightWatch watch(weight, matrix);  // first: what changes while it is packed is seen by the next call
    std::shared_ptr<const PackedMatrix> packed;
    {
      const py::gil_scoped_release release;
      packed = cpu_products().pack(product, num_threads);
    }
    packed_ = std::move(packed);
    watch_ = std::move(watch);
  }

  std::int64_t inputs_;
  std::int64_t outputs_;
  std::shared_ptr<const PackedMatrix> packed_;  // with watch_, changed under the GIL
  WeightWatch watch_;
};

// The rank's units of a matrix whose role in a decoder has this name: whether its output features are cut, and which.
std::tuple<bool, std::int64_t, std::int64_t> shard(const std::string& role, const std::string& what, std::int64_t units,
                                                   int rank, int size) {
  constexpr std::array<std::pair<std::string_view, Role>, 5> roles = {
      {{"query", Role::query}, {"key", Role::key}, {"value", Role::value}, {"gate", Role::gate}, {"down", Role::down}}};
  const auto* found = std::ranges::find(roles, role, [](const auto& entry) { return entry.first; });
  if (found == roles.end()) throw InputError(concat("no matrix has the role ", role));
  if (size < 1 || rank < 0 || rank >= size) throw InputError(concat("rank must be in [0, ", size, "), got ", rank));
  if (units < 1) throw InputError(concat(what, " must be positive, got ", units));
  const ShardRule rule = shard_rule(found->second);
  if (!can_split(rule.split, units, size))
    throw InputError(concat(what, " is ", units, ", which can't be split over ", size, " ranks"));
  const Slice slice = rank_slice(rule.split, units, rank, size);
  return {rule.cut == Cut::rows, slice.first, slice.count};
}

}  // namespace

void bind_layers(py::module_& module) {
  module.def(
      "divide_even", [](std::int64_t a, std::int64_t b) { return divide_even(a, b); }, py::arg("a"), py::arg("b"),
      "a / b. Raises InputError where b does not divide a.");
  module.def("shard", &shard, py::arg("role"), py::arg("what"), py::arg("units"), py::arg("rank"), py::arg("size"),
             "(whether output features are cut, first unit, number of units) of a rank, by the table of cuts. `what` "
             "names the units in an error.");
  py::class_<LinearProduct>(module, "LinearProduct", "The product of a linear layer, on the tensors' own device.")
      .def(py::init<std::int64_t, std::int64_t>(), py::arg("inputs"), py::arg("outputs"))
      .def(
          "run", &LinearProduct::run, py::arg("x"), py::arg("weight"), py::arg("bias"),
          "A new tensor [..., outputs] of x [..., inputs], weight [outputs, inputs] and bias [outputs] or None, all of "
          "one dtype and on one device. On a CPU it is done when this returns; on a GPU it is queued on torch's "
          "current "
          "stream.")
      .def(py::pickle([](const LinearProduct& self) { return py::make_tuple(self.inputs(), self.outputs()); },
                      [](const py::tuple& sizes) {
                        return LinearProduct(sizes[0].cast<std::int64_t>(), sizes[1].cast<std::int64_t>());
                      }));
}

}  // namespace minisgl
