// Makes DLPack capsules.
#include "bind/lent_tensor.h"

#include "bind/dlpack.h"

namespace py = pybind11;

namespace minisgl {
namespace {

// A lent tensor; it owns its shape, and nothing of the memory.
struct LentTensor {
  dlpack::ManagedTensor managed;
  std::int64_t shape[1];
};

py::capsule lend(void* data, std::int64_t count, dlpack::DataType dtype, int device) {
  auto* lent = new LentTensor;
  lent->shape[0] = count;
  const dlpack::Device place = device < 0 ? dlpack::Device{dlpack::kCpu, 0} : dlpack::Device{dlpack::kCuda, device};
  lent->managed.tensor = {data, place, 1, dtype, lent->shape, nullptr, 0};
  lent->managed.manager_context = lent;
  lent->managed.deleter = [](dlpack::ManagedTensor* self) { delete static_cast<LentTensor*>(self->manager_context); };
  PyObject* capsule = PyCapsule_New(&lent->managed, "dltensor", [](PyObject* self) {
    // Renamed by who took it over, and then it is theirs to delete.
    if (!PyCapsule_IsValid(self, "dltensor")) return;
    auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(self, "dltensor"));
    managed->deleter(managed);
  });
  if (!capsule) {
    delete lent;
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::capsule>(capsule);
}

}  // namespace

py::capsule lend_tensor(void* data, std::int64_t count, DType dtype, int device) {
  const std::uint8_t code = dtype == DType::bf16 ? dlpack::kBfloat : dlpack::kFloat;
  return lend(data, count, {code, static_cast<std::uint8_t>(row_bytes(dtype, 1) * 8), 1}, device);
}

py::capsule lend_bytes(void* data, std::int64_t num_bytes, int device) {
  return lend(data, num_bytes, {dlpack::kUnsigned, 8, 1}, device);
}

}  // namespace minisgl
