// A weak reference, torch's version count, and a hash of some elements.
#include "bind/weight_watch.h"

#include <cstddef>
#include <cstring>

namespace py = pybind11;

namespace minisgl {
namespace {

constexpr std::uint64_t kSamples = 64;
constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15;  // 2^64 over the golden ratio: multiples of it spread evenly

// Of the elements of a matrix [rows, cols]: evenly spaced rows, in each of them another column.
std::uint64_t sample_of(const BorrowedTensor& matrix) {
  const auto* bytes = static_cast<const std::byte*>(matrix.data());
  const auto rows = static_cast<std::uint64_t>(matrix.shape()[0]), cols = static_cast<std::uint64_t>(matrix.shape()[1]);
  const auto size = static_cast<std::uint64_t>(row_bytes(matrix.dtype(), 1));
  std::uint64_t hash = 0;
  for (std::uint64_t i = 0; i < kSamples; ++i) {
    const std::uint64_t row = i * rows / kSamples, col = ((i * kGolden) >> 32) * cols >> 32;
    std::uint32_t value = 0;
    std::memcpy(&value, bytes + (row * cols + col) * size, size);
    hash = (hash ^ value) * kGolden;
    hash ^= hash >> 32;
  }
  return hash;
}

py::handle version_name() {
  static const py::handle name = PyUnicode_InternFromString("_version");
  return name;
}

// None for a tensor made in inference mode, which refuses the question.
py::object version_of(py::handle tensor) {
  PyObject* version = PyObject_GetAttr(tensor.ptr(), version_name().ptr());
  if (version != nullptr) return py::reinterpret_steal<py::object>(version);
  PyErr_Clear();
  return py::none();
}

}  // namespace

WeightWatch::WeightWatch(py::handle tensor, const BorrowedTensor& matrix)
    : reference_(py::weakref(tensor)),
      version_(version_of(tensor)),
      data_(matrix.data()),
      dtype_(matrix.dtype()),
      sample_(sample_of(matrix)) {}

bool WeightWatch::unchanged(py::handle tensor, const BorrowedTensor& matrix) const {
  if (!reference_ || matrix.data() != data_ || matrix.dtype() != dtype_ || !reference_().is(tensor)) return false;
  // A tensor that had no count gets none: asking it raises, which takes longer than all the rest.
  return (version_.is_none() || version_of(tensor).equal(version_)) && sample_of(matrix) == sample_;
}

}  // namespace minisgl
