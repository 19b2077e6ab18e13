#include "core/dtype.h"

namespace minisgl {

std::optional<DType> dtype_from_name(std::string_view name) {
  for (DType dtype :
       {DType::f32, DType::f16, DType::bf16, DType::q8_0, DType::q4_0, DType::q4_1, DType::q4_k, DType::q6_k}) {
    if (dtype_info(dtype).name == name) return dtype;
  }
  return std::nullopt;
}

}  // namespace minisgl
