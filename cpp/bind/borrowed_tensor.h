// Tensors of any framework, lent by Python through DLPack.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "bind/dlpack.h"
#include "comm/communicator.h"
#include "core/dtype.h"

namespace minisgl {

// A tensor, borrowed from Python for as long as this object lives. Made, asked and destroyed under the GIL; its memory
// is used without it. `name` is the argument's, for messages.
class BorrowedTensor {
 public:
  static constexpr int kHost = -1;

  // Throws TypeError for what is no tensor, InputError for one that is neither on the host nor on a CUDA device, or
  // that its framework doesn't lend.
  BorrowedTensor(pybind11::handle tensor, const char* name);

  // A dense tensor on `device`: a GPU's number or kHost. Throws InputError for another one.
  BorrowedTensor(pybind11::handle tensor, const char* name, int device);

  const char* name() const { return name_; }
  int device() const { return tensor_.device.type == dlpack::kCuda ? tensor_.device.ordinal : kHost; }
  void* data() const { return static_cast<char*>(tensor_.data) + tensor_.byte_offset; }
  std::int64_t count() const { return count_; }
  std::int64_t num_bytes() const { return count_ * tensor_.dtype.bits * tensor_.dtype.lanes / 8; }
  std::span<const std::int64_t> shape() const { return {tensor_.shape, static_cast<std::size_t>(tensor_.num_dims)}; }
  bool is_contiguous() const;
  // Throws InputError for a tensor with gaps, or in another order.
  void require_contiguous() const;

  // float32, float16 or bfloat16. Throws InputError for another one.
  DType dtype() const;

  // The stream that the tensor's framework works on now; 0 on the host.
  StreamHandle current_stream() const;

 private:
  void borrow_capsule(pybind11::object capsule);

  const char* name_;
  const dlpack::Exchange* exchange_;  // null: the framework has none
  pybind11::object capsule_;          // without it. Never renamed, so its own destructor gives the tensor back
  dlpack::Tensor tensor_{};
  std::int64_t count_ = 1;
};

// "bfloat16" and so on: what frameworks call it.
const char* framework_name(DType dtype);

// "in the host's memory", "on CUDA device 1"
std::string place_text(int device);

}  // namespace minisgl
