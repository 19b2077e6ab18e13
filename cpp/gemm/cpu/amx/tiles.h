// The tile registers, by assembly: what compilers bring for them says neither that a load reads memory nor how much of
// the configuration is read. A register has up to 16 rows of 64 bytes.
#pragma once

#include <cstdint>

namespace minisgl::amx {

#define MINISGL_AMX __attribute__((target("amx-tile,amx-bf16")))

struct HardwareTiles {
  // Registers 0 to 5 get `rows` rows, 6 and 7 get 16. All are zeros then.
  MINISGL_AMX static void configure(int rows) {
    struct {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } configuration;
    for (int i = 0; i < 8; ++i) {
      configuration.row_bytes[i] = 64;
      configuration.rows[i] = static_cast<std::uint8_t>(i < 6 ? rows : 16);
    }
    static_assert(sizeof(configuration) == 64);
    asm volatile("ldtilecfg %0" : : "m"(configuration) : "memory");
  }

  // Gives the registers back, so that nobody saves them at a switch of threads.
  MINISGL_AMX static void release() { asm volatile("tilerelease" : : : "memory"); }

  // Rows are `stride` bytes apart.
  template <int tile>
  MINISGL_AMX static void load(const void* from, std::int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(tile) : "memory");
  }
  template <int tile>
  MINISGL_AMX static void store(void* to, std::int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(tile) : "memory");
  }

  // sums [rows, 16] f32 += activations [rows, 32] bf16 by weights [16 pairs, 16 outputs, 2] bf16.
  template <int sums, int activations, int weights>
  MINISGL_AMX static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(activations), "i"(weights));
  }
};

#undef MINISGL_AMX

}  // namespace minisgl::amx
