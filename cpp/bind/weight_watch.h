// Whether a tensor of torch's still holds what it held when something was made of it.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "bind/borrowed_tensor.h"

namespace minisgl {

// Exact for what torch counts: another tensor, other memory, a change in place. What it doesn't count (changes through
// `.data`, through an array that shares the memory, and all of a tensor that was made in inference mode) is seen where
// it reaches one of 64 elements spread over the matrix, as a change of all of it does.
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
