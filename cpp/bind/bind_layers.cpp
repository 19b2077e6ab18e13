// Python's view of the sharded linear layers, outside an engine: for those who build models of their own, and for
// tests. Tensors cross by DLPack; activations are read and written where they lie.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/borrowed_tensor.h"
#include "core/error.h"
#include "engine/device.h"
#include "layers/linear.h"
#include "layers/matrix_part.h"
#include "layers/sharding.h"

namespace py = pybind11;

namespace minisgl {
namespace {

// Threads and buffers that layers share. One thread at a time.
struct LayerDevice {
  explicit LayerDevice(std::int64_t num_threads) : device(make_device("cpu", num_threads)) {}
  std::unique_ptr<Device> device;
};

struct Rank {
  int rank;
  int size;
};

struct NamedProjection {
  const char* name;
  Role role;
  std::int64_t unit;  // features that stay together
  py::object weight;  // [out_features, in_features], of the whole model
  py::object bias;    // [out_features] or None
};

void require_shape(const BorrowedTensor& tensor, std::size_t num_dims) {
  if (tensor.shape().size() != num_dims)
    throw InputError(concat(tensor.name(), " must have ", num_dims, num_dims == 1 ? " dimension" : " dimensions"));
}

std::vector<float> bias_of(const NamedProjection& projection, std::int64_t out_features, const Slice& slice,
                           Rank rank) {
  if (projection.bias.is_none()) return {};
  const BorrowedTensor bias(projection.bias, concat(projection.name, "'s bias"), BorrowedTensor::kHost);
  require_shape(bias, 1);
  if (bias.dtype() != DType::f32 || bias.count() != out_features)
    throw InputError(concat(bias.name(), " must be float32 of ", out_features, " elements"));
  const float* values = static_cast<const float*>(bias.data());
  if (shard_rule(projection.role).cut == Cut::rows) return {values + slice.first, values + slice.first + slice.count};
  return rank.rank == 0 ? std::vector<float>(values, values + out_features) : std::vector<float>();
}

Projection shard(const NamedProjection& projection, Rank rank, Device& device) {
  const BorrowedTensor weight(projection.weight, concat(projection.name, "'s weight"), BorrowedTensor::kHost);
  require_shape(weight, 2);
  const MatrixBytes whole{
      .dtype = weight.dtype(),
      .rows = weight.shape()[0],
      .cols = weight.shape()[1],
      .bytes = {static_cast<const std::byte*>(weight.data()), static_cast<std::size_t>(weight.num_bytes())}};
  const ShardRule rule = shard_rule(projection.role);
  const std::int64_t features = rule.cut == Cut::rows ? whole.rows : whole.cols;
  const std::int64_t units = divide_even(features, projection.unit, concat("features of ", projection.name));
  if (!can_split(rule.split, units, rank.size))
    throw InputError(concat(weight.name(), ": ", units, projection.unit == 1 ? " features" : " heads",
                            " can't be split over ", rank.size, " ranks"));
  const Slice slice = rank_slice(rule.split, units, rank.rank, rank.size) * projection.unit;
  std::vector<float> bias = bias_of(projection, whole.rows, slice, rank);
  const py::gil_scoped_release release;
  const MatrixPart part = take_part(whole, rule.cut, slice, device.pool());
  return {device.make_matrix(whole.dtype, part.rows, part.cols, part.bytes), std::move(bias)};
}

template <typename Layer>
class PyLayer {
 public:
  PyLayer(std::shared_ptr<LayerDevice> device, const std::vector<NamedProjection>& projections, Rank rank)
      : device_(std::move(device)), layer_(make(*device_->device, projections, rank)) {}

  std::int64_t in_features() const { return layer_.in_features(); }
  std::int64_t out_features() const { return layer_.out_features(); }

  void forward(const py::object& input, const py::object& output) const {
    const BorrowedTensor x(input, "input", BorrowedTensor::kHost), y(output, "output", BorrowedTensor::kHost);
    const Tensor from = rows_of(x, in_features()), to = rows_of(y, out_features());
    if (from.rows != to.rows) throw InputError(concat("output has ", to.rows, " rows, input ", from.rows));
    const py::gil_scoped_release release;
    layer_.forward(*device_->device, from, to);
  }

 private:
  static Layer make(Device& device, const std::vector<NamedProjection>& projections, Rank rank) {
    if (rank.size < 1 || rank.rank < 0 || rank.rank >= rank.size)
      throw InputError(concat("rank must be in [0, ", rank.size, "), got ", rank.rank));
    if (projections.empty()) throw InputError("a layer needs at least one weight");
    std::vector<Projection> outputs;
    for (const NamedProjection& projection : projections) {
      outputs.push_back(shard(projection, rank, device));
      if (outputs.back().weight->cols() != outputs.front().weight->cols())
        throw InputError("weights of one layer must have the same number of columns");
    }
    return Layer(device.make_linear(std::move(outputs)));
  }

  static Tensor rows_of(const BorrowedTensor& tensor, std::int64_t cols) {
    require_shape(tensor, 2);
    if (tensor.dtype() != DType::f32 || tensor.shape()[1] != cols)
      throw InputError(concat(tensor.name(), " must be float32 of ", cols, " columns"));
    return {static_cast<std::byte*>(tensor.data()), DType::f32, tensor.shape()[0], cols};
  }

  std::shared_ptr<LayerDevice> device_;
  Layer layer_;
};

using Tensors = std::vector<py::object>;

std::unique_ptr<PyLayer<LinearColParallelMerged>> make_column_parallel(const Tensors& weights, const Tensors& biases,
                                                                       int rank, int size,
                                                                       std::shared_ptr<LayerDevice> device) {
  if (weights.size() != biases.size()) throw InputError(concat(weights.size(), " weights, ", biases.size(), " biases"));
  std::vector<NamedProjection> projections;
  for (std::size_t i = 0; i < weights.size(); ++i)
    projections.push_back({"the projection", Role::gate, 1, weights[i], biases[i]});
  return std::make_unique<PyLayer<LinearColParallelMerged>>(std::move(device), projections, Rank{rank, size});
}

std::unique_ptr<PyLayer<LinearRowParallel>> make_row_parallel(const py::object& weight, const py::object& bias,
                                                              int rank, int size, std::shared_ptr<LayerDevice> device) {
  const std::vector<NamedProjection> projections{{"the projection", Role::down, 1, weight, bias}};
  return std::make_unique<PyLayer<LinearRowParallel>>(std::move(device), projections, Rank{rank, size});
}

std::unique_ptr<PyLayer<LinearQKVMerged>> make_qkv(const Tensors& weights, const Tensors& biases, std::int64_t head_dim,
                                                   int rank, int size, std::shared_ptr<LayerDevice> device) {
  if (weights.size() != 3 || biases.size() != 3) throw InputError("queries, keys and values are three weights");
  if (head_dim < 1) throw InputError(concat("head_dim must be positive, got ", head_dim));
  const std::vector<NamedProjection> projections{{"the query", Role::query, head_dim, weights[0], biases[0]},
                                                 {"the key", Role::key, head_dim, weights[1], biases[1]},
                                                 {"the value", Role::value, head_dim, weights[2], biases[2]}};
  return std::make_unique<PyLayer<LinearQKVMerged>>(std::move(device), projections, Rank{rank, size});
}

template <typename Layer>
py::class_<PyLayer<Layer>> bind_layer(py::module_& module, const char* name, const char* what) {
  return py::class_<PyLayer<Layer>>(module, name, what)
      .def_property_readonly("in_features", &PyLayer<Layer>::in_features)
      .def_property_readonly("out_features", &PyLayer<Layer>::out_features)
      .def("forward", &PyLayer<Layer>::forward, py::arg("input"), py::arg("output"),
           "Writes the rank's part of the product into output [num_rows, out_features], of input [num_rows, "
           "in_features]; both float32, contiguous and in the host's memory.");
}

}  // namespace

void bind_layers(py::module_& module) {
  module.def(
      "divide_even", [](std::int64_t a, std::int64_t b) { return divide_even(a, b); }, py::arg("a"), py::arg("b"),
      "a / b. Raises InputError where b does not divide a.");
  py::class_<LayerDevice, std::shared_ptr<LayerDevice>>(module, "LayerDevice",
                                                        "Threads that layers compute on. One call at a time.")
      .def(py::init<std::int64_t>(), py::kw_only(), py::arg("num_threads") = 0,
           "0: every processor that this process may use.");
  bind_layer<LinearColParallelMerged>(module, "LinearColParallelMerged", "Output features cut over the ranks.")
      .def(py::init(&make_column_parallel), py::arg("weights"), py::arg("biases"), py::kw_only(), py::arg("rank"),
           py::arg("size"), py::arg("device"));
  bind_layer<LinearRowParallel>(module, "LinearRowParallel", "Input features cut over the ranks, which sum.")
      .def(py::init(&make_row_parallel), py::arg("weight"), py::arg("bias"), py::kw_only(), py::arg("rank"),
           py::arg("size"), py::arg("device"));
  bind_layer<LinearQKVMerged>(module, "LinearQKVMerged", "Heads cut over the ranks.")
      .def(py::init(&make_qkv), py::arg("weights"), py::arg("biases"), py::kw_only(), py::arg("head_dim"),
           py::arg("rank"), py::arg("size"), py::arg("device"));
}

}  // namespace minisgl
