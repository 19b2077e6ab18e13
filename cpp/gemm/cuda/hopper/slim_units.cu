// Chooses the kernel of a product of some tens of rows by quantised weights, and how it is cut.
#include "core/error.h"
#include "gemm/cuda/hopper/slim_stages.cuh"
#include "gemm/cuda/quantised_form.cuh"

namespace minisgl::cuda {
namespace hopper {

template <typename Form>
void launch_units(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream);  // slim_units.cuh

}  // namespace hopper

// What was measured on an H200: up to 64 rows two blocks to a processor, above that one with all of its memory.
SlimTuning slim_units_tuning(const SlimArgs& args) {
  const std::int64_t enough = args.rows <= 64 ? 180 : 96;  // blocks
  const std::int64_t weight_rows = args.outputs * (args.output == SkinnyOutput::gated ? 2 : 1);
  SlimTuning tuning{.weight_rows = 2 * hopper::kGroupRows};
  const std::int64_t tiles = (weight_rows + tuning.weight_rows - 1) / tuning.weight_rows;
  for (const int splits : {2, 3, 4, 6, 8})
    if (tiles * tuning.splits < enough && splits * 256 <= args.inputs) tuning.splits = splits;
  if (args.rows > 64) tuning.shared_bytes *= 2;
  return tuning;
}

void slim_units_gemm(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream) {
  MINISGL_CHECK(args.output != SkinnyOutput::gated || args.outputs % kUnitRows == 0, args.outputs, " gated outputs");
  with_form(args.weights.format, [&]<typename Form>() { hopper::launch_units<Form>(args, tuning, stream); });
}

}  // namespace minisgl::cuda
