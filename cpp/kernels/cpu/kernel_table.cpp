// Collects the tables that isa/table.cpp makes, one per instruction set.
#include "kernels/cpu/kernel_table.h"

#include "core/error.h"

namespace minisgl {

#define MINISGL_DECLARE_TABLE(isa) \
  namespace isa {                  \
  extern const CpuKernels kernels; \
  }
MINISGL_FOR_EACH_ISA(MINISGL_DECLARE_TABLE)

const CpuKernels& cpu_kernels(CpuIsa isa) {
#define MINISGL_RETURN_TABLE(name) \
  if (base_isa(isa) == CpuIsa::name) return name::kernels;
  MINISGL_FOR_EACH_ISA(MINISGL_RETURN_TABLE)
  MINISGL_CHECK(false, "no kernels for ", cpu_isa_label(isa));
}

}  // namespace minisgl
