// Rows of bf16 against bf16 weights by tiles: 16 outputs x up to 16 rows, 32 columns an instruction. The sum of an
// output meets the steps of 32 columns in ascending order, whatever the tiles; inside a step the order is the
// processor's. `Tiles` is tiles.h's, or what a test puts in its place on a processor without them.
//
// Floor: 2 bytes read for each weight; with many rows, 16,384 operations in 16 cycles. Columns are taken in blocks, and
// of each block a few panels of outputs, so that activations and weights are read from the second-level cache; the sums
// wait in memory between blocks. Weights of the next piece, a panel of a block, are asked for evenly in the course of
// the one before, so that reading them takes no time of its own.
//
// Rows are cut into tiles of one height, the last of which may overlap the one before: its sums are its own, and what
// is written twice is the same.
#pragma once

#include <string.h>

#include "gemm/kernel.h"

namespace minisgl::amx {

constexpr int tile_outputs = 16;                                // a pair of groups
constexpr int step_columns = 32, step_pairs = 16;               // of one instruction
constexpr int step_bytes = step_pairs * bf16_pair_block_bytes;  // weights of a step
constexpr int max_rows = 64, max_row_tiles = 4;
constexpr std::int64_t block_steps = 32;
constexpr int max_panels = 3;  // of two vectors of outputs

template <typename Tiles>
struct Bf16Rows {
  using Sums = float[16][tile_outputs];

  // A piece: some columns of a panel of one or two vectors of outputs.
  struct Block {
    const std::byte* weights;   // the first vector's
    std::int64_t vector_bytes;  // from a vector to the next
    const std::byte* x;         // [num_rows, ...] bf16
    std::int64_t x_stride;      // bytes
    std::int64_t num_steps;
    const std::byte* ahead;       // weights to ask for, of the first vector
    std::int64_t lines_per_step;  // of each vector
  };

  // Where the tiles of rows lie.
  struct RowTiles {
    explicit RowTiles(std::int64_t num_rows) : num_rows(num_rows) {
      count = num_rows <= 16 ? 1 : (num_rows + 31) / 32 * 2;
      height = (num_rows + count - 1) / count;
    }
    std::int64_t first_row(std::int64_t tile) const {
      return (tile + 1) * height <= num_rows ? tile * height : num_rows - height;
    }
    std::int64_t num_rows, count, height;
  };

  // Adds the block's products to sums [row_tiles][2 vectors] of one or two tiles of rows, which begin at x0 and x1.
  template <int vectors, int row_tiles>
  static void multiply_tiles(const Block& block, const std::byte* x0, const std::byte* x1, const std::byte* ahead,
                             Sums (*sums)[2]) {
    constexpr std::int64_t stride = sizeof(sums[0][0][0]);
    Tiles::template load<0>(sums[0][0], stride);
    if constexpr (vectors > 1) Tiles::template load<1>(sums[0][1], stride);
    if constexpr (row_tiles > 1) Tiles::template load<2>(sums[1][0], stride);
    if constexpr (row_tiles > 1 && vectors > 1) Tiles::template load<3>(sums[1][1], stride);
    const std::byte* weights = block.weights;
    for (std::int64_t step = 0; step < block.num_steps; ++step) {
      for (std::int64_t line = 0; line < block.lines_per_step; ++line, ahead += 64) {
        __builtin_prefetch(ahead, 0, 2);
        if constexpr (vectors > 1) __builtin_prefetch(ahead + block.vector_bytes, 0, 2);
      }
      Tiles::template load<6>(weights, bf16_pair_block_bytes);
      Tiles::template load<4>(x0, block.x_stride);
      Tiles::template multiply<0, 4, 6>();
      if constexpr (row_tiles > 1) {
        Tiles::template load<5>(x1, block.x_stride);
        Tiles::template multiply<2, 5, 6>();
      }
      if constexpr (vectors > 1) {
        Tiles::template load<7>(weights + block.vector_bytes, bf16_pair_block_bytes);
        Tiles::template multiply<1, 4, 7>();
        if constexpr (row_tiles > 1) Tiles::template multiply<3, 5, 7>();
      }
      weights += step_bytes;
      x0 += step_columns * 2;
      x1 += step_columns * 2;
    }
    Tiles::template store<0>(sums[0][0], stride);
    if constexpr (vectors > 1) Tiles::template store<1>(sums[0][1], stride);
    if constexpr (row_tiles > 1) Tiles::template store<2>(sums[1][0], stride);
    if constexpr (row_tiles > 1 && vectors > 1) Tiles::template store<3>(sums[1][1], stride);
  }

  template <int vectors>
  static void multiply_block(const Block& block, const RowTiles& tiles, Sums (*sums)[2]) {
    const auto x = [&](std::int64_t tile) { return block.x + tiles.first_row(tile) * block.x_stride; };
    if (tiles.count == 1) {
      multiply_tiles<vectors, 1>(block, x(0), x(0), block.ahead, sums);
      return;
    }
    const std::byte* ahead = block.ahead;
    for (std::int64_t tile = 0; tile < tiles.count; tile += 2) {
      multiply_tiles<vectors, 2>(block, x(tile), x(tile + 1), ahead, sums + tile);
      ahead += block.num_steps * block.lines_per_step * 64;
    }
  }

  // The columns behind the last whole step, beside zeros.
  template <int vectors>
  static void multiply_last(const KernelArgs& args, const std::byte* weights, std::int64_t vector_bytes,
                            const RowTiles& tiles, Sums (*sums)[2]) {
    const std::int64_t done = args.cols / step_columns * step_columns, left = args.cols - done;
    alignas(64) std::byte last_weights[vectors][step_bytes] = {};
    alignas(64) std::byte last_x[max_rows][step_columns * 2] = {};
    for (int v = 0; v < vectors; ++v)
      memcpy(last_weights[v], weights + v * vector_bytes + done / 2 * bf16_pair_block_bytes,
             static_cast<std::size_t>((left + 1) / 2 * bf16_pair_block_bytes));
    for (std::int64_t row = 0; row < args.num_rows; ++row)
      memcpy(last_x[row], args.activations + row * args.activation_stride + done * 2,
             static_cast<std::size_t>(left * 2));
    multiply_block<vectors>({.weights = last_weights[0],
                             .vector_bytes = step_bytes,
                             .x = last_x[0],
                             .x_stride = step_columns * 2,
                             .num_steps = 1,
                             .ahead = last_weights[0],
                             .lines_per_step = 0},
                            tiles, sums);
  }

  // Up to max_panels panels of outputs, from `output` on.
  static void multiply_panels(const KernelArgs& args, const RowTiles& tiles, std::int64_t output) {
    alignas(64) Sums sums[max_panels][max_row_tiles][2];
    memset(sums, 0, sizeof(sums));
    constexpr std::int64_t panel_outputs = 2 * tile_outputs;
    const std::int64_t vector_bytes = (args.cols + 1) / 2 * bf16_pair_block_bytes, panel_bytes = 2 * vector_bytes;
    const std::byte* weights = args.weights + output / tile_outputs * vector_bytes;
    const std::int64_t left = (args.num_outputs - output + panel_outputs - 1) / panel_outputs;
    const std::int64_t num_panels = left < max_panels ? left : max_panels;
    const auto has_two_vectors = [&](std::int64_t panel) {
      return output + panel * panel_outputs + tile_outputs < args.num_outputs;
    };
    const std::int64_t num_steps = args.cols / step_columns;
    for (std::int64_t step = 0; step < num_steps; step += block_steps) {
      const std::int64_t end = step + block_steps < num_steps ? step + block_steps : num_steps;
      for (std::int64_t panel = 0; panel < num_panels; ++panel) {
        const std::byte* next = panel + 1 < num_panels ? weights + (panel + 1) * panel_bytes + step * step_bytes
                                : end < num_steps      ? weights + end * step_bytes
                                                       : weights + num_panels * panel_bytes;
        const Block block{.weights = weights + panel * panel_bytes + step * step_bytes,
                          .vector_bytes = vector_bytes,
                          .x = args.activations + step * step_columns * 2,
                          .x_stride = args.activation_stride,
                          .num_steps = end - step,
                          .ahead = next,
                          .lines_per_step = tiles.count <= 2 ? step_pairs : step_pairs * 2 / tiles.count};
        has_two_vectors(panel) ? multiply_block<2>(block, tiles, sums[panel])
                               : multiply_block<1>(block, tiles, sums[panel]);
      }
    }
    for (std::int64_t panel = 0; panel < num_panels; ++panel) {
      if (args.cols % step_columns != 0) {
        const std::byte* first = weights + panel * panel_bytes;
        has_two_vectors(panel) ? multiply_last<2>(args, first, vector_bytes, tiles, sums[panel])
                               : multiply_last<1>(args, first, vector_bytes, tiles, sums[panel]);
      }
      for (std::int64_t tile = 0; tile < tiles.count; ++tile)
        for (int v = 0; v < (has_two_vectors(panel) ? 2 : 1); ++v)
          store_tile(args, sums[panel][tile][v], tiles, tile, output + panel * panel_outputs + v * tile_outputs);
    }
  }

  static void store_tile(const KernelArgs& args, const Sums& sums, const RowTiles& tiles, std::int64_t tile,
                         std::int64_t output) {
    const std::int64_t left = args.num_outputs - output, count = left < tile_outputs ? left : tile_outputs;
    for (std::int64_t row = 0; row < tiles.height; ++row) {
      float* y = args.y + (tiles.first_row(tile) + row) * args.y_stride + output;
      for (std::int64_t i = 0; i < count; ++i) y[i] = args.bias ? sums[row][i] + args.bias[output + i] : sums[row][i];
    }
  }

  // Any number of rows.
  static void run(const KernelArgs& args) {
    for (std::int64_t row = 0; row < args.num_rows; row += max_rows) {
      KernelArgs rows = args;
      rows.activations += row * args.activation_stride;
      rows.num_rows = args.num_rows - row < max_rows ? args.num_rows - row : max_rows;
      rows.y += row * args.y_stride;
      const RowTiles tiles(rows.num_rows);
      Tiles::configure(static_cast<int>(tiles.height));
      for (std::int64_t output = 0; output < args.num_outputs; output += max_panels * 2 * tile_outputs)
        multiply_panels(rows, tiles, output);
    }
    Tiles::release();
  }
};

}  // namespace minisgl::amx
