// f16 weights against f32 activations. Floor: 2 bytes read for each weight.
#include "gemm/cpu/isa/floats.h"
#include "gemm/cpu/isa/kernels.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct F16 {
  static constexpr int bytes = 2;
  template <typename Lanes>
  static typename Lanes::F32 load(const std::byte* low, const std::byte* high) {
    return Lanes::load_f16(low, high);
  }
};

}  // namespace

void gemm_f16_one_row(const KernelArgs& args) {
  multiply_floats_one_row<F16>(args);
}
void gemm_f16(const KernelArgs& args) {
  multiply_floats<F16>(args);
}

}  // namespace minisgl::MINISGL_ISA
