// bf16 weights against f32 activations. Floor: 2 bytes read for each weight.
#include "gemm/cpu/isa/floats.h"
#include "gemm/cpu/isa/kernels.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct Bf16 {
  static constexpr int bytes = 2;
  template <typename Lanes>
  static typename Lanes::F32 load(const std::byte* low, const std::byte* high) {
    return Lanes::load_bf16(low, high);
  }
};

}  // namespace

void gemm_bf16_one_row(const KernelArgs& args) {
  multiply_floats_one_row<Bf16>(args);
}
void gemm_bf16(const KernelArgs& args) {
  multiply_floats<Bf16>(args);
}

}  // namespace minisgl::MINISGL_ISA
