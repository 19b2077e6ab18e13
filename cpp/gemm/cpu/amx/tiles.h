// The tile registers, by assembly: what compilers bring for them says neither that a load reads memory nor how much of
// the configuration is read. A register has up to 16 rows of 64 bytes.
#pragma once

#include <cstdint>

namespace minisgl::amx {

#define MINISGL_AMX __attribute__((target("amx-tile,amx-bf16,amx-int8")))

struct HardwareTiles {
  // Registers 0 to 5 get `rows` rows, 6 and 7 get 16. All are zeros then.
  MINISGL_AMX static void configure(int rows) {
    Configuration configuration;
    for (int i = 0; i < 8; ++i) configuration.set(i, i < 6 ? rows : 16, 64);
    configuration.load();
  }

  // For products of bytes in parts of 32 columns: registers 0 to 3 are sums of 16 rows, 4 and 5 have 16 rows of 32
  // bytes, 6 and 7 have 8 rows.
  MINISGL_AMX static void configure_bytes() {
    Configuration configuration;
    for (int i = 0; i < 8; ++i) configuration.set(i, i < 6 ? 16 : 8, i == 4 || i == 5 ? 32 : 64);
    configuration.load();
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

  template <int tile>
  MINISGL_AMX static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(tile));
  }

  // sums [rows, 16] f32 += activations [rows, 32] bf16 by weights [16 pairs, 16 outputs, 2] bf16.
  template <int sums, int activations, int weights>
  MINISGL_AMX static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(activations), "i"(weights));
  }

  // sums [16, 16] i32 += activations [16, 32] i8 by weights [8 quads, 16 outputs, 4] i8.
  template <int sums, int activations, int weights>
  MINISGL_AMX static void multiply_bytes() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(activations), "i"(weights));
  }

 private:
  struct Configuration {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};

    void set(int tile, int height, int bytes) {
      row_bytes[tile] = static_cast<std::uint16_t>(bytes);
      rows[tile] = static_cast<std::uint8_t>(height);
    }
    MINISGL_AMX void load() const {
      static_assert(sizeof(Configuration) == 64);
      asm volatile("ldtilecfg %0" : : "m"(*this) : "memory");
    }
  };
};

#undef MINISGL_AMX

}  // namespace minisgl::amx
