// From how many rows on a kernel that an instruction set adds is faster than the one that it would replace: a matter of
// the processor, so it is measured once a process. Both give the same bits.
#pragma once

#include <cstdint>
#include <vector>

#include "gemm/kernel.h"

namespace minisgl {

// Of each format as `more` has them those that are faster from some number of rows on, with that as min_rows.
std::vector<Kernel> choose_by_rows(const KernelTable& base, const MoreKernels& more);

}  // namespace minisgl
