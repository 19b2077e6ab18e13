// f16 weights against f32 activations. Floor: 2 bytes read for each weight.
#include "gemm/cpu/floats.h"
#include "gemm/cpu/kernels.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct F16 {
  static constexpr int bytes = 2;
  static F32x8 load(const std::byte* p) { return F32x8::load_f16(p); }
};

}  // namespace

void gemm_f16_one_row(const KernelArgs& args) {
  multiply_floats_one_row<F16>(args);
}
void gemm_f16(const KernelArgs& args) {
  multiply_floats<F16>(args);
}

}  // namespace minisgl::MINISGL_ISA
