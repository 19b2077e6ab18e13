// Chooses the kernel of a product of one row by quantised weights.
#include "core/error.h"
#include "gemm/cuda/quantised_form.cuh"

namespace minisgl::cuda {
namespace quantised {

template <typename Form>
void launch_row(const SkinnyArgs& args, cudaStream_t stream);  // quantised_row.cuh

}  // namespace quantised

void quantised_row_gemm(const SkinnyArgs& args, cudaStream_t stream) {
  MINISGL_CHECK(args.output != SkinnyOutput::gated || args.outputs % kUnitRows == 0, args.outputs, " gated outputs");
  with_form(args.weights.format, [&]<typename Form>() { quantised::launch_row<Form>(args, stream); });
}

}  // namespace minisgl::cuda
