// Whether a tensor of torch's still holds what it held when something was made of it.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "bind/borrowed_tensor.h"

namespace minisgl {

// Exact for what torch counts: another tensor, other memory, a change in place. Changes that it doesn't count (through
// `.data`, an array that shares the memory, any of a tensor made in inference mode) are seen where they reach one of 64
// elements spread over the matrix, as one that writes all of it does.
class WeightWatch {
 public:
  WeightWatch() = default;
  WeightWatch(pybind11::handle tensor, const BorrowedTensor& matrix);
  bool unchanged(pybind11::handle tensor, const BorrowedTensor& matrix) const;

 private:
  pybind11::object reference_;  // weak; null: nothing is watched
  pybind11::object version_;    // torch's count of changes; None: it has none
  const void* data_ = nullptr;
  DType dtype_ = DType::f32;
  std::uint64_t sample_ = 0;
};

}  // namespace minisgl
