#include "core/dtype.h"

namespace minisgl {

std::optional<DType> kv_dtype_from_name(std::string_view name) {
  for (const DType dtype : kv_dtypes) {
    if (dtype_info(dtype).name == name) return dtype;
  }
  return std::nullopt;
}

}  // namespace minisgl
