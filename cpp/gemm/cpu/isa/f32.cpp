// f32 weights against f32 activations. Floor: 4 bytes read for each weight.
#include "gemm/cpu/isa/floats.h"
#include "gemm/cpu/isa/kernels.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct F32 {
  static constexpr int bytes = 4;
  template <typename Lanes>
  static typename Lanes::F32 load(const std::byte* low, const std::byte* high) {
    return Lanes::load_f32(low, high);
  }
};

}  // namespace

void gemm_f32_one_row(const KernelArgs& args) {
  multiply_floats_one_row<F32>(args);
}
void gemm_f32(const KernelArgs& args) {
  multiply_floats<F32>(args);
}

}  // namespace minisgl::MINISGL_ISA
