// Quantised rows against blocks by tiles of bytes: 16 rows x 16 outputs, 32 columns an instruction. The integer sums
// are exact, and the scales are applied to them in the order of the kernels without tiles, so that both give the same
// bits. `Tiles` is tiles.h's, or what a test puts in its place on a processor without them.
//
// Floor: an instruction takes 16 cycles, half of it for columns that the scales don't allow; three operations on each
// of 16 vectors of sums take 24 beside them. Columns are taken 256 at a time: what 128 rows have of them and a panel of
// weights stay in the first-level cache, and the f32 sums wait in the second-level cache meanwhile.
#pragma once

#include <string.h>

#include "gemm/cpu/amx/int8_formats.h"

namespace minisgl::MINISGL_ISA {

constexpr int int8_tile_rows = 16, int8_max_rows = 128, int8_max_panels = 16;
constexpr int int8_row_tiles = int8_max_rows / int8_tile_rows;
constexpr int int8_parts = 8;  // of 32 columns that are taken at a time

// Two parts of 32 columns of 16 rows, side by side: registers are filled from one line a row. Rows that don't exist are
// zeros.
struct alignas(64) RowParts {
  std::int8_t q[int8_tile_rows][2][32];
  float scale[2][int8_tile_rows], scaled_sum[2][int8_tile_rows];
  float run_sum[2][2][int8_tile_rows];  // of a part, then of a run
};

template <typename Tiles, typename Format>
struct Int8Rows {
  using Sums = float[int8_tile_rows][vector_outputs];
  using Dots = std::int32_t[Format::runs][int8_tile_rows][vector_outputs];

  static void gather_rows(const KernelArgs& args, std::int64_t first_part, int parts, int num_tiles,
                          RowParts (*rows)[int8_parts / 2]) {
    for (int tile = 0; tile < num_tiles; ++tile) {
      for (int r = 0; r < int8_tile_rows; ++r) {
        const std::int64_t row = tile * int8_tile_rows + r;
        const auto* blocks =
            reinterpret_cast<const ActivationBlock*>(args.activations + row * args.activation_stride) + first_part;
        for (int i = 0; i < parts; ++i) {
          RowParts& to = rows[tile][i / 2];
          const ActivationBlock none = {};
          const ActivationBlock& block = row < args.num_rows ? blocks[i] : none;
          memcpy(to.q[r][i % 2], block.q, sizeof(block.q));
          to.scale[i % 2][r] = block.scale;
          if constexpr (Format::minimum == Minimum::per_part) to.scaled_sum[i % 2][r] = block.scaled_sum;
          if constexpr (Format::minimum == Minimum::per_run)
            for (int run = 0; run < 2; ++run) to.run_sum[i % 2][run][r] = static_cast<float>(block.sums16[run]);
        }
      }
    }
  }

  static void gather_weights(const std::byte* group, std::int64_t next, std::int64_t first_part, int parts,
                             WeightPart* weights) {
    constexpr std::int64_t block_bytes = Format::head_bytes + std::int64_t{Format::parts_per_block} * Format::bytes;
    for (int i = 0; i < parts; ++i) {
      const std::int64_t part = first_part + i;
      const PackedPart head{group + part / Format::parts_per_block * block_bytes, next};
      Format::unpack(head,
                     head.at(Format::head_bytes + static_cast<int>(part % Format::parts_per_block) * Format::bytes),
                     weights[i]);
    }
  }

  // Registers of sums that take turns: the instruction's result comes three times later than the next could begin.
  static constexpr int num_turns = Format::runs == 2 ? 2 : 4, ahead = num_turns == 2 ? 2 : 3;

  // The integer sums of part i, in registers `turn` and, of the second run, `turn` + 2.
  template <int i>
  static void multiply_part(const RowParts* x, const WeightPart* weights) {
    constexpr int turn = i % num_turns, a = 4 + i % 2, b = 6 + i % 2;
    constexpr std::int64_t x_stride = sizeof(x->q[0]), weight_stride = sizeof(weights->q[0][0]);
    Tiles::template load<a>(x[i / 2].q[0][i % 2], x_stride);
    Tiles::template load<b>(weights[i].q[0], weight_stride);
    Tiles::template zero<turn>();
    Tiles::template multiply_bytes<turn, a, b>();
    if constexpr (Format::runs == 2) {
      Tiles::template load<b>(weights[i].q[1], weight_stride);
      Tiles::template zero<turn + 2>();
      Tiles::template multiply_bytes<turn + 2, a, b>();
    }
  }

  template <int i>
  static void store_part(Dots& dots) {
    constexpr int turn = i % num_turns;
    Tiles::template store<turn>(dots[0], sizeof(dots[0][0]));
    if constexpr (Format::runs == 2) Tiles::template store<turn + 2>(dots[1], sizeof(dots[0][0]));
  }

  static F32x16 load_sums(const std::int32_t* dots) { return to_f32(I32x16{_mm512_load_si512(dots)}); }

  template <int i>
  static void add_part(const RowParts* parts, const WeightPart* all_weights, const Dots& dots,
                       F32x16 (&sums)[int8_tile_rows]) {
    const RowParts& x = parts[i / 2];
    const WeightPart& weights = all_weights[i];
    const F32x16 scale = F32x16::load(weights.scale);
#pragma GCC unroll 16
    for (int r = 0; r < int8_tile_rows; ++r) {
      const F32x16 x_scale = F32x16::splat(x.scale[i % 2][r]);
      F32x16 dot = load_sums(dots[0][r]);
      if constexpr (Format::runs == 2)  // exact: below 2^24
        dot = fma(load_sums(dots[1][r]), F32x16::load(weights.run_scale[1]), dot * F32x16::load(weights.run_scale[0]));
      sums[r] = fma(dot, scale * x_scale, sums[r]);
      if constexpr (Format::minimum == Minimum::per_part)
        sums[r] = fma(F32x16::load(weights.minimum), F32x16::splat(x.scaled_sum[i % 2][r]), sums[r]);
      if constexpr (Format::minimum == Minimum::per_run) {
        const F32x16 both = fma(F32x16::load(weights.run_minimum[1]), F32x16::splat(x.run_sum[i % 2][1][r]),
                                F32x16::load(weights.run_minimum[0]) * F32x16::splat(x.run_sum[i % 2][0][r]));
        sums[r] = fma(both, F32x16::load(weights.minimum) * x_scale, sums[r]);
      }
    }
  }

  // From part i on. While the vectors work on it, the tiles have later ones.
  template <int i>
  [[gnu::always_inline]] static void multiply_from(const RowParts* x, const WeightPart* weights, int parts,
                                                   Dots (&dots)[2], F32x16 (&sums)[int8_tile_rows]) {
    if constexpr (i + ahead < int8_parts) {
      if (i + ahead < parts) multiply_part<i + ahead>(x, weights);
    }
    if constexpr (i + 1 < int8_parts) {
      if (i + 1 < parts) store_part<i + 1>(dots[(i + 1) % 2]);
    }
    add_part<i>(x, weights, dots[i % 2], sums);
    if constexpr (i + 1 < int8_parts) {
      if (i + 1 < parts) multiply_from<i + 1>(x, weights, parts, dots, sums);
    }
  }

  static void multiply_tile(const RowParts* x, const WeightPart* weights, int parts, bool is_first, Sums& kept) {
    alignas(64) Dots dots[2];
    F32x16 sums[int8_tile_rows];
#pragma GCC unroll 16
    for (int r = 0; r < int8_tile_rows; ++r) sums[r] = is_first ? F32x16::zero() : F32x16::load(kept[r]);
    multiply_part<0>(x, weights);
    if (parts > 1) multiply_part<1>(x, weights);
    if constexpr (ahead > 2) {
      if (parts > 2) multiply_part<2>(x, weights);
    }
    store_part<0>(dots[0]);
    multiply_from<0>(x, weights, parts, dots, sums);
#pragma GCC unroll 16
    for (int r = 0; r < int8_tile_rows; ++r) sums[r].store(kept[r]);
  }

  static void store_tile(const KernelArgs& args, const Sums& sums, std::int64_t first_row, std::int64_t output) {
    const std::int64_t rows = args.num_rows - first_row < int8_tile_rows ? args.num_rows - first_row : int8_tile_rows;
    const std::int64_t left = args.num_outputs - output, count = left < vector_outputs ? left : vector_outputs;
    for (std::int64_t r = 0; r < rows; ++r) {
      float* y = args.y + (first_row + r) * args.y_stride + output;
      for (std::int64_t i = 0; i < count; ++i) y[i] = args.bias ? sums[r][i] + args.bias[output + i] : sums[r][i];
    }
  }

  // Up to int8_max_rows rows by up to int8_max_panels panels of outputs, from `output` on.
  static void multiply_panels(const KernelArgs& args, std::int64_t output) {
    alignas(64) Sums sums[int8_max_panels][int8_row_tiles];
    alignas(64) RowParts rows[int8_row_tiles][int8_parts / 2];
    alignas(64) WeightPart weights[int8_parts];
    if (args.cols == 0) memset(sums, 0, sizeof(sums));
    constexpr std::int64_t part_group_bytes = Format::bytes;
    const std::int64_t num_parts = args.cols / 32;
    const std::int64_t group_bytes =
        num_parts / Format::parts_per_block * Format::head_bytes + num_parts * part_group_bytes;
    const std::int64_t left = (args.num_outputs - output + vector_outputs - 1) / vector_outputs;
    const int num_panels = static_cast<int>(left < int8_max_panels ? left : int8_max_panels);
    const int num_tiles = static_cast<int>((args.num_rows + int8_tile_rows - 1) / int8_tile_rows);
    for (std::int64_t part = 0; part < num_parts; part += int8_parts) {
      const int parts = static_cast<int>(num_parts - part < int8_parts ? num_parts - part : int8_parts);
      gather_rows(args, part, parts, num_tiles, rows);
      for (int panel = 0; panel < num_panels; ++panel) {
        const std::int64_t first = output + panel * vector_outputs;
        const std::int64_t next = first + group_rows < args.num_outputs ? group_bytes : 0;
        gather_weights(args.weights + first / group_rows * group_bytes, next, part, parts, weights);
        for (int tile = 0; tile < num_tiles; ++tile)
          multiply_tile(rows[tile], weights, parts, part == 0, sums[panel][tile]);
      }
    }
    for (int panel = 0; panel < num_panels; ++panel)
      for (int tile = 0; tile < num_tiles; ++tile)
        store_tile(args, sums[panel][tile], tile * int8_tile_rows, output + panel * vector_outputs);
  }

  // Any number of rows.
  static void run(const KernelArgs& args) {
    Tiles::configure_bytes();
    for (std::int64_t row = 0; row < args.num_rows; row += int8_max_rows) {
      KernelArgs rows = args;
      rows.activations += row * args.activation_stride;
      rows.num_rows = args.num_rows - row < int8_max_rows ? args.num_rows - row : int8_max_rows;
      rows.y += row * args.y_stride;
      for (std::int64_t output = 0; output < args.num_outputs; output += int8_max_panels * vector_outputs)
        multiply_panels(rows, output);
    }
    Tiles::release();
  }
};

}  // namespace minisgl::MINISGL_ISA
