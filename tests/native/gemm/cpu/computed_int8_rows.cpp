// Compiled for AVX-512, so that nothing here may be inline code of others (core/simd.h).
#define MINISGL_ISA computed_tiles
#define MINISGL_ISA_AMX
#include "gemm/cpu/computed_int8_rows.h"

#include "gemm/cpu/amx/int8_rows.h"

namespace minisgl {
namespace computed_tiles {
namespace {

bool configured = false, is_right = true;

// As the processor's manual has them, for the shapes of configure_bytes().
struct ComputedTiles {
  static inline std::int8_t registers[8][16][64];

  static constexpr int height(int tile) { return tile < 6 ? 16 : 8; }
  static constexpr std::size_t width(int tile) { return tile == 4 || tile == 5 ? 32 : 64; }

  static void configure_bytes() {
    configured = true;
    memset(registers, 0, sizeof(registers));
  }
  static void release() { configured = false; }
  template <int tile>
  static void zero() {
    is_right = is_right && configured;
    memset(registers[tile], 0, sizeof(registers[tile]));
  }
  template <int tile>
  static void load(const void* from, std::int64_t stride) {
    is_right = is_right && configured;
    for (int r = 0; r < height(tile); ++r)
      memcpy(registers[tile][r], static_cast<const char*>(from) + r * stride, width(tile));
  }
  template <int tile>
  static void store(void* to, std::int64_t stride) {
    is_right = is_right && configured;
    for (int r = 0; r < height(tile); ++r) memcpy(static_cast<char*>(to) + r * stride, registers[tile][r], width(tile));
  }
  template <int sums, int activations, int weights>
  static void multiply_bytes() {
    is_right = is_right && configured;
    for (int r = 0; r < 16; ++r) {
      std::int32_t row[16];
      memcpy(row, registers[sums][r], sizeof(row));
      for (int output = 0; output < 16; ++output)
        for (int k = 0; k < 32; ++k)
          row[output] += registers[activations][r][k] * registers[weights][k / 4][4 * output + k % 4];
      memcpy(registers[sums][r], row, sizeof(row));
    }
  }
};

template <typename Format>
bool run(const KernelArgs& args) {
  is_right = true;
  Int8Rows<ComputedTiles, Format>::run(args);
  return is_right && !configured;
}

}  // namespace
}  // namespace computed_tiles

bool run_int8_rows_on_computed_tiles(DType dtype, const KernelArgs& args) {
  using namespace computed_tiles;
  switch (dtype) {
    case DType::q8_0: return run<Q8_0Parts>(args);
    case DType::q4_0: return run<Q4_0Parts>(args);
    case DType::q4_1: return run<Q4_1Parts>(args);
    case DType::q4_k: return run<Q4_KParts>(args);
    case DType::q6_k: return run<Q6_KParts>(args);
    case DType::q5_0: return run<Q5_0Parts>(args);
    case DType::q5_1: return run<Q5_1Parts>(args);
    case DType::q5_k: return run<Q5_KParts>(args);
    case DType::q2_k: return run<Q2_KParts>(args);
    case DType::q3_k: return run<Q3_KParts>(args);
    case DType::iq4_nl: return run<Iq4NlParts>(args);
    case DType::iq4_xs: return run<Iq4XsParts>(args);
    case DType::mxfp4: return run<Mxfp4Parts>(args);
    default: return false;
  }
}

}  // namespace minisgl
