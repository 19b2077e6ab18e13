// f32 weights against f32 activations. Floor: 4 bytes read for each weight.
#include "gemm/cpu/floats.h"
#include "gemm/cpu/kernels.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct F32 {
  static constexpr int bytes = 4;
  static F32x8 load(const std::byte* p) { return F32x8::load(reinterpret_cast<const float*>(p)); }
};

}  // namespace

void gemm_f32_one_row(const KernelArgs& args) {
  multiply_floats_one_row<F32>(args);
}
void gemm_f32(const KernelArgs& args) {
  multiply_floats<F32>(args);
}

}  // namespace minisgl::MINISGL_ISA
