// The tile kernel of a block format on registers that are computed, for processors with AVX-512 but without tiles.
#pragma once

#include "core/dtype.h"
#include "gemm/kernel.h"

namespace minisgl {

// False where something isn't as the processor wants it: registers that weren't configured, or weren't given back.
bool run_int8_rows_on_computed_tiles(DType dtype, const KernelArgs& args);

}  // namespace minisgl
