// One device, whole: for code that makes one, owns one or needs several of its sides. Other code takes the side that it
// uses. The CPU (cpu/backend.h) and CUDA (cuda/backend.h) implement it; callers know neither. One thread at a time.
#pragma once

#include "kernels/collectives.h"
#include "kernels/hardware.h"
#include "kernels/ops.h"
#include "kernels/step_runner.h"
#include "kernels/weight_maker.h"

namespace minisgl {

class Device : public Hardware, public WeightMaker, public StepRunner, public Ops, public Collectives {};

}  // namespace minisgl
