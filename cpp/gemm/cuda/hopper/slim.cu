// Products of 9 to 128 rows with weights in bf16, and how those of up to 256 are cut.
#include "gemm/cuda/hopper/even.h"
#include "gemm/cuda/hopper/slim.cuh"
#include "gemm/cuda/hopper/slim_many.h"
#include "gemm/cuda/quantised.h"

namespace minisgl::cuda {

using namespace hopper;

bool has_slim_gemm() {
  static const bool is_hopper = [] {
    int device = 0, major = 0;
    MINISGL_CUDA_CHECK(cudaGetDevice(&device));
    MINISGL_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    return major == 9;
  }();
  return is_hopper;
}

namespace {

constexpr std::int64_t kProcessors = 132;

template <int groups, int n>
using FewRows = PlainStages<groups, n, false>;

// Of 129 to 256 rows: two blocks share them.
SlimTuning tuning_of_many(const SlimArgs& args) {
  const bool is_gated = args.output == SkinnyOutput::gated;
  const std::int64_t weight_rows = args.outputs * (is_gated ? 2 : 1);
  const auto blocks = [&](int block_rows) { return (weight_rows + block_rows - 1) / block_rows; };
  SlimTuning tuning{.weight_rows = 2 * kGroupRows};
  if (is_gated && blocks(kEvenWeightRows) > kProcessors / 2) {
    tuning.weight_rows = kEvenWeightRows;
    return tuning;
  }
  const std::int64_t all = 2 * blocks(tuning.weight_rows);
  constexpr std::int64_t kFewestInputs = 8 * kTileColumns;  // of a block that shares them
  for (const int splits : {2, 4, 6})
    if (all * splits <= kProcessors && splits * kFewestInputs <= args.inputs) tuning.splits = splits;
  if (all <= kProcessors) tuning.shared_bytes *= 2;  // as below
  return tuning;
}

}  // namespace

SlimTuning slim_tuning(const SlimArgs& args) {
  if (is_e4m3(args.weights.format)) return slim_e4m3_tuning(args);
  if (is_quantised(args.weights.format)) return slim_units_tuning(args);
  if (args.rows > kMostSlimRows) return tuning_of_many(args);
  constexpr std::int64_t kEnough = 96, kMany = 2 * kProcessors;  // blocks
  constexpr std::int64_t kLong = 16;  // stages, from which on a block streams more than it starts with
  const std::int64_t weight_rows = args.outputs * (args.output == SkinnyOutput::gated ? 2 : 1);
  const std::int64_t all_chunks = (args.inputs + kTileColumns - 1) / kTileColumns;
  SlimTuning tuning;
  if (args.heads.num_heads > 0 || weight_rows > kMany * kGroupRows) tuning.weight_rows = 2 * kGroupRows;
  const std::int64_t tiles = (weight_rows + tuning.weight_rows - 1) / tuning.weight_rows;
  for (const int splits : {2, 3, 4, 6, 8})
    if (tiles * tuning.splits < kEnough && splits * kTileColumns <= args.inputs) tuning.splits = splits;
  // One block of a processor is deep in flight; else there is room for another, of the next kernel.
  if (tiles * tuning.splits <= kProcessors && all_chunks / tuning.splits > kLong) tuning.shared_bytes *= 2;
  return tuning;
}

void slim_gemm(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream) {
  if (is_e4m3(args.weights.format)) return slim_e4m3_gemm(args, tuning, stream);
  if (is_quantised(args.weights.format)) return slim_units_gemm(args, tuning, stream);
  if (tuning.weight_rows == kEvenWeightRows) return even_gemm(args, stream);
  if (args.rows > kMostSlimRows) return slim_gemm_of_many(args, tuning, stream);
  if (tuning.weight_rows == 128) return launch_slim_rows<FewRows, 2>(args, tuning, stream);
  return launch_slim_rows<FewRows, 1>(args, tuning, stream);
}

}  // namespace minisgl::cuda
