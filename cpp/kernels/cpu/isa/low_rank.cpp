// The two small products of an adapter. An element is summed up in one order, whatever rows are beside it.
#include "core/half.h"
#include "kernels/cpu/isa/kernels.h"

namespace minisgl::MINISGL_ISA {
namespace {

using F32 = Wide::F32;
constexpr int kLanes = 8 * Wide::groups;
static_assert(kLowRankPanel % kLanes == 0);

struct F32Weights {
  using Value = float;
  static F32 load(const Value* p) { return Wide::load_f32(p, p + 8); }
  static float value(Value value) { return value; }
};
struct Bf16Weights {
  using Value = std::uint16_t;
  static F32 load(const Value* p) { return Wide::load_bf16(p, p + 8); }
  static float value(Value value) { return bf16_to_f32(value); }
};

float sum_of_lanes(F32 lanes) {
  float values[kLanes];
  lanes.store(values);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  }
  return values[0];
}

template <typename Weights, int num_rows, int num_ranks>
void down_tile(const LowRankDown& args, std::int64_t row, std::int64_t rank) {
  const auto* const weights = reinterpret_cast<const typename Weights::Value*>(args.weights) + rank * args.inputs;
  const float* x[num_rows];
#pragma GCC unroll 4
  for (int r = 0; r < num_rows; ++r) x[r] = args.x + args.rows[row + r] * args.x_stride;
  F32 sums[num_rows][num_ranks];
#pragma GCC unroll 4
  for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < num_ranks; ++j) sums[r][j] = F32::zero();
  }
  std::int64_t i = 0;
  for (; i + kLanes <= args.inputs; i += kLanes) {
    F32 inputs[num_rows];
#pragma GCC unroll 4
    for (int r = 0; r < num_rows; ++r) inputs[r] = Wide::load_f32(x[r] + i, x[r] + i + 8);
#pragma GCC unroll 4
    for (int j = 0; j < num_ranks; ++j) {
      const F32 weight = Weights::load(weights + j * args.inputs + i);
      // The next tile's: rows are too short to foresee.
      __builtin_prefetch(weights + (j + num_ranks) * args.inputs + i);
#pragma GCC unroll 4
      for (int r = 0; r < num_rows; ++r) sums[r][j] = fma(inputs[r], weight, sums[r][j]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < num_ranks; ++j) {
      float sum = sum_of_lanes(sums[r][j]);
      for (std::int64_t k = i; k < args.inputs; ++k) sum += x[r][k] * Weights::value(weights[j * args.inputs + k]);
      args.hidden[(row + r) * args.hidden_stride + rank + j] = sum;
    }
  }
}

template <typename Weights, int num_rows>
void down_rows(const LowRankDown& args, std::int64_t row) {
  std::int64_t rank = 0;
  for (; rank + 4 <= args.rank; rank += 4) down_tile<Weights, num_rows, 4>(args, row, rank);
  for (; rank < args.rank; ++rank) down_tile<Weights, num_rows, 1>(args, row, rank);
}

template <typename Weights>
void down(const LowRankDown& args) {
  std::int64_t row = 0;
  for (; row + 4 <= args.num_rows; row += 4) down_rows<Weights, 4>(args, row);
  if (row + 2 <= args.num_rows) {
    down_rows<Weights, 2>(args, row);
    row += 2;
  }
  if (row < args.num_rows) down_rows<Weights, 1>(args, row);
}

template <typename Weights, int num_rows>
void up_tile(const LowRankUp& args, std::int64_t row, const typename Weights::Value* panel,
             float* const (&y)[num_rows]) {
  constexpr int num_vectors = kLowRankPanel / kLanes;
  F32 sums[num_rows][num_vectors];
#pragma GCC unroll 4
  for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < num_vectors; ++v) sums[r][v] = Wide::load_f32(y[r] + v * kLanes, y[r] + v * kLanes + 8);
  }
  for (std::int64_t j = 0; j < args.rank; ++j) {
    F32 weights[num_vectors];
    __builtin_prefetch(panel + (args.rank + j) * kLowRankPanel);
#pragma GCC unroll 4
    for (int v = 0; v < num_vectors; ++v) weights[v] = Weights::load(panel + j * kLowRankPanel + v * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < num_rows; ++r) {
      const F32 hidden = F32::splat(args.hidden[(row + r) * args.hidden_stride + j]);
#pragma GCC unroll 4
      for (int v = 0; v < num_vectors; ++v) sums[r][v] = fma(hidden, weights[v], sums[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < num_vectors; ++v) sums[r][v].store(y[r] + v * kLanes);
  }
}

template <typename Weights, int num_rows>
void up_rows(const LowRankUp& args, std::int64_t row) {
  const auto* panel = reinterpret_cast<const typename Weights::Value*>(args.weights);
  for (std::int64_t first = 0; first < args.outputs; first += kLowRankPanel) {
    float* y[num_rows];
#pragma GCC unroll 4
    for (int r = 0; r < num_rows; ++r) y[r] = args.y + args.rows[row + r] * args.y_stride + first;
    const std::int64_t count = args.outputs - first;
    if (count >= kLowRankPanel) {
      up_tile<Weights, num_rows>(args, row, panel, y);
    } else {
      float copies[num_rows][kLowRankPanel] = {};
      float* to[num_rows];
#pragma GCC unroll 4
      for (int r = 0; r < num_rows; ++r) {
        to[r] = copies[r];
        memcpy(to[r], y[r], count * sizeof(float));
      }
      up_tile<Weights, num_rows>(args, row, panel, to);
#pragma GCC unroll 4
      for (int r = 0; r < num_rows; ++r) memcpy(y[r], to[r], count * sizeof(float));
    }
    panel += args.rank * kLowRankPanel;
  }
}

template <typename Weights>
void up(const LowRankUp& args) {
  std::int64_t row = 0;
  for (; row + 4 <= args.num_rows; row += 4) up_rows<Weights, 4>(args, row);
  if (row + 2 <= args.num_rows) {
    up_rows<Weights, 2>(args, row);
    row += 2;
  }
  if (row < args.num_rows) up_rows<Weights, 1>(args, row);
}

}  // namespace

void low_rank_down(const LowRankDown& args) {
  args.dtype == DType::f32 ? down<F32Weights>(args) : down<Bf16Weights>(args);
}

void low_rank_up(const LowRankUp& args) {
  args.dtype == DType::f32 ? up<F32Weights>(args) : up<Bf16Weights>(args);
}

}  // namespace minisgl::MINISGL_ISA
