// bf16 weights against f32 activations. Floor: 2 bytes read for each weight.
#include "gemm/cpu/floats.h"
#include "gemm/cpu/kernels.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct Bf16 {
  static constexpr int bytes = 2;
  static F32x8 load(const std::byte* p) { return F32x8::load_bf16(p); }
};

}  // namespace

void gemm_bf16_one_row(const KernelArgs& args) {
  multiply_floats_one_row<Bf16>(args);
}
void gemm_bf16(const KernelArgs& args) {
  multiply_floats<Bf16>(args);
}

}  // namespace minisgl::MINISGL_ISA
