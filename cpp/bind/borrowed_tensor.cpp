// The two ways to a tensor: its framework's table of functions, or a capsule from a call of Python's.
#include "bind/borrowed_tensor.h"

#include <string>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "io/tensor_layout.h"

namespace py = pybind11;

namespace minisgl {
namespace {

// How tensors of a type come to us.
struct Lender {
  const dlpack::Exchange* exchange = nullptr;  // the table that the type brings
  py::object to_capsule;                       // without one: a function that makes capsules; null: `__dlpack__`
};

const dlpack::Exchange* find_exchange(py::handle type) {
  const py::object capsule = py::getattr(type, "__dlpack_c_exchange_api__", py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  const auto* header =
      static_cast<const dlpack::ExchangeHeader*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (header != nullptr && header->major != dlpack::kMajorVersion) header = header->older;
  const auto* exchange = reinterpret_cast<const dlpack::Exchange*>(header);
  return exchange != nullptr && exchange->borrow != nullptr ? exchange : nullptr;
}

// torch's own function takes a tenth of the time of its `__dlpack__`, which is written in Python.
py::object find_to_capsule(py::handle type) {
  const py::dict modules = py::module_::import("sys").attr("modules");
  if (!modules.contains("torch")) return {};
  const py::object torch = modules["torch"], tensor_type = py::getattr(torch, "Tensor", py::none());
  if (PyObject_IsSubclass(type.ptr(), tensor_type.ptr()) != 1) {
    PyErr_Clear();  // of a torch that is being imported
    return {};
  }
  return py::module_::import("torch.utils.dlpack").attr("to_dlpack");
}

// Asked once for each type, which is kept alive: there are few.
const Lender& lender_of(PyTypeObject* type) {
  static auto& known = *new std::unordered_map<PyTypeObject*, Lender>;  // guarded by the GIL
  const auto found = known.find(type);
  if (found != known.end()) return found->second;
  const py::handle object(reinterpret_cast<PyObject*>(type));
  Lender lender{find_exchange(object), {}};
  if (lender.exchange == nullptr) lender.to_capsule = find_to_capsule(object);
  object.inc_ref();
  return known.emplace(type, std::move(lender)).first->second;
}

bool is_host(std::int32_t device_type) {
  return device_type == dlpack::kCpu || device_type == dlpack::kCudaHost;
}

// What frameworks call it: "int64".
std::string dtype_text(const dlpack::DataType& type) {
  const std::string lanes = type.lanes == 1 ? "" : concat(" x ", type.lanes);
  switch (type.code) {
    case dlpack::kInt: return concat("int", type.bits, lanes);
    case dlpack::kUnsigned: return concat("uint", type.bits, lanes);
    case dlpack::kFloat: return concat("float", type.bits, lanes);
    case dlpack::kBfloat: return concat("bfloat", type.bits, lanes);
    case dlpack::kComplex: return concat("complex", type.bits, lanes);
    case dlpack::kBool: return "bool" + lanes;
    default: return concat("a type of ", type.bits, " bits (DLPack's code ", type.code, ")", lanes);
  }
}

std::string first_line(std::string text) {
  return text.substr(0, text.find('\n'));
}

py::object export_capsule(py::handle tensor, const char* name) {
  if (!py::hasattr(tensor, "__dlpack__"))
    throw py::type_error(concat(name, " must be a tensor, got ", Py_TYPE(tensor.ptr())->tp_name));
  // Asked before the export: a stream is a wrong argument to it for a tensor on the host.
  const py::tuple device = tensor.attr("__dlpack_device__")();
  if (is_host(device[0].cast<std::int32_t>())) return tensor.attr("__dlpack__")();
  // -1: no synchronisation with the exporter's stream; the caller passes the stream that it works on.
  return tensor.attr("__dlpack__")(py::arg("stream") = -1);
}

}  // namespace

BorrowedTensor::BorrowedTensor(py::handle tensor, const char* name) : name_(name) {
  const Lender& lender = lender_of(Py_TYPE(tensor.ptr()));
  exchange_ = lender.exchange;
  try {
    if (exchange_ == nullptr) {
      borrow_capsule(lender.to_capsule ? lender.to_capsule(tensor) : export_capsule(tensor, name));
    } else if (exchange_->borrow(tensor.ptr(), &tensor_) != 0) {
      throw py::error_already_set();
    }
  } catch (const py::error_already_set& error) {
    throw InputError(concat(name_, " can't be read where it is: ", first_line(error.what())));
  }
  if (!is_host(tensor_.device.type) && tensor_.device.type != dlpack::kCuda)
    throw InputError(concat(name_, " must be in the memory of a CPU or of a CUDA device"));
  for (const std::int64_t size : shape()) count_ *= size;
}

BorrowedTensor::BorrowedTensor(py::handle tensor, const char* name, int device) : BorrowedTensor(tensor, name) {
  if (this->device() != device)
    throw InputError(concat(name_, " must be ", place_text(device), ", and is ", place_text(this->device())));
  require_contiguous();
}

void BorrowedTensor::borrow_capsule(py::object capsule) {
  const auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (!managed) throw py::error_already_set();
  tensor_ = managed->tensor;
  capsule_ = std::move(capsule);
}

bool BorrowedTensor::is_contiguous() const {
  if (!tensor_.strides || count_ == 0) return true;
  std::int64_t stride = 1;
  for (int dim = tensor_.num_dims - 1; dim >= 0; --dim) {
    if (tensor_.shape[dim] > 1 && tensor_.strides[dim] != stride) return false;
    stride *= tensor_.shape[dim];
  }
  return true;
}

void BorrowedTensor::require_contiguous() const {
  if (is_contiguous()) return;
  const std::span<const std::int64_t> strides(tensor_.strides, shape().size());
  throw InputError(
      concat(name_, " must be contiguous, got ", shape_text(shape()), " with strides ", shape_text(strides)));
}

DType BorrowedTensor::dtype() const {
  const auto [code, bits, lanes] = tensor_.dtype;
  if (lanes == 1 && code == dlpack::kFloat && bits == 32) return DType::f32;
  if (lanes == 1 && code == dlpack::kFloat && bits == 16) return DType::f16;
  if (lanes == 1 && code == dlpack::kBfloat && bits == 16) return DType::bf16;
  throw InputError(concat(name_, " must be float32, float16 or bfloat16, got ", dtype_text(tensor_.dtype)));
}

StreamHandle BorrowedTensor::current_stream() const {
  if (device() == kHost) return 0;
  if (exchange_ == nullptr) {
    const py::object stream = py::module_::import("torch").attr("cuda").attr("current_stream")(device());
    return stream.attr("cuda_stream").cast<StreamHandle>();
  }
  void* stream = nullptr;
  if (exchange_->current_stream(tensor_.device.type, tensor_.device.ordinal, &stream) != 0)
    throw py::error_already_set();
  return reinterpret_cast<StreamHandle>(stream);
}

const char* framework_name(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float32";
    case DType::f16: return "float16";
    case DType::bf16: return "bfloat16";
    default: return dtype_info(dtype).name.data();
  }
}

std::string place_text(int device) {
  return device == BorrowedTensor::kHost ? "in the host's memory" : concat("on CUDA device ", device);
}

}  // namespace minisgl
