// The kernel of bf16_rows.h on the processor's tile registers.
#include "gemm/cpu/amx/bf16_rows.h"

#include "gemm/cpu/amx/tiles.h"

namespace minisgl::amx {

void gemm_bf16_rows(const KernelArgs& args) {
  Bf16Rows<HardwareTiles>::run(args);
}

}  // namespace minisgl::amx
