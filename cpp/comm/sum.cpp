// Chooses among the kernels that cpu/isa/sum.cpp makes, one per instruction set.
#include "comm/sum.h"

#include "core/error.h"

namespace minisgl {

#define MINISGL_DECLARE_SUM(isa)                                                                          \
  namespace isa {                                                                                         \
  void sum_inputs(const void* const* inputs, int num_inputs, std::int64_t count, DType dtype, void* out); \
  }
MINISGL_FOR_EACH_ISA(MINISGL_DECLARE_SUM)

SumKernel sum_kernel(CpuIsa isa) {
#define MINISGL_RETURN_SUM(name) \
  if (base_isa(isa) == CpuIsa::name) return name::sum_inputs;
  MINISGL_FOR_EACH_ISA(MINISGL_RETURN_SUM)
  MINISGL_CHECK(false, "no kernels for ", cpu_isa_label(isa));
}

}  // namespace minisgl
