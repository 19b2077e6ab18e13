// Paged attention beside its ceilings, measured in this process: in decode, bytes of cache that must be read over the
// read bandwidth; in prefill, FLOP/s over those of a large f32 matrix product.
//
// Arguments of a benchmark: threads, query heads, KV heads, head_dim, batch, context. Pages have 16 tokens; /f16 and
// /int8 say what the cache holds.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/bandwidth.h"
#include "core/thread_pool.h"
#include "gemm/gemm.h"
#include "kernels/cpu/ops.h"

namespace {

using minisgl::AlignedBuffer;
using minisgl::DType;
using minisgl::ThreadPool;
namespace ops = minisgl::ops;
namespace cpu_ops = minisgl::cpu_ops;

constexpr int kPageSize = 16;
constexpr std::int64_t kWorkingSet = std::int64_t{256} << 20;  // several times a last-level cache

struct Shape {
  DType dtype;
  int threads, num_heads, num_kv_heads, head_dim, batch, context;

  Shape(DType dtype, const benchmark::State& state)
      : dtype(dtype),
        threads(static_cast<int>(state.range(0))),
        num_heads(static_cast<int>(state.range(1))),
        num_kv_heads(static_cast<int>(state.range(2))),
        head_dim(static_cast<int>(state.range(3))),
        batch(static_cast<int>(state.range(4))),
        context(static_cast<int>(state.range(5))) {}
  int pages_per_sequence() const { return (context + kPageSize - 1) / kPageSize; }
  // Keys (or values) of all sequences in one layer: heads, and bytes of them and of their scales.
  std::int64_t layer_heads() const { return std::int64_t{batch} * pages_per_sequence() * kPageSize * num_kv_heads; }
  std::int64_t layer_bytes() const { return layer_heads() * minisgl::row_bytes(dtype, head_dim); }
  std::int64_t scale_bytes() const {
    return minisgl::has_kv_scales(dtype) ? layer_heads() * std::int64_t{sizeof(float)} : 0;
  }
  std::int64_t bytes() const { return 2 * (layer_bytes() + scale_bytes()); }
};

// As many layers as make the cache too large for the processor to keep.
class Caches {
 public:
  explicit Caches(const Shape& shape, std::int64_t working_set)
      : shape_(shape),
        num_layers_(std::max<std::int64_t>(1, working_set / shape.bytes())),
        data_(static_cast<std::size_t>(num_layers_ * 2 * shape.layer_bytes())),
        scales_(static_cast<std::size_t>(num_layers_ * 2 * shape.scale_bytes()) / sizeof(float), 0.004f),
        page_table_(static_cast<std::size_t>(shape.batch) * shape.pages_per_sequence()) {
    auto* halves = data_.as<std::uint16_t>();
    for (std::size_t i = 0; i < data_.size() / 2; ++i)
      halves[i] = static_cast<std::uint16_t>(0x3400 + (i * 37 & 0x3ff) + (i & 1) * 0x8000);  // +-0.25 .. 0.5
    std::iota(page_table_.begin(), page_table_.end(), 0);
  }

  ops::KvLayer next() {
    const std::int64_t index = std::exchange(layer_, (layer_ + 1) % num_layers_);
    std::byte* keys = data_.data() + index * 2 * shape_.layer_bytes();
    ops::KvLayer layer{keys,           keys + shape_.layer_bytes(), shape_.dtype, shape_.num_kv_heads, kPageSize,
                       shape_.head_dim};
    if (!scales_.empty()) {
      layer.key_scales = scales_.data() + 2 * index * shape_.layer_heads();
      layer.value_scales = layer.key_scales + shape_.layer_heads();
    }
    return layer;
  }
  const std::int32_t* page_table(int sequence) const { return &page_table_[sequence * shape_.pages_per_sequence()]; }

 private:
  Shape shape_;
  std::int64_t num_layers_, layer_ = 0;
  AlignedBuffer data_;
  std::vector<float> scales_;
  std::vector<std::int32_t> page_table_;
};

std::vector<float> queries(const Shape& shape, std::int64_t rows) {
  std::vector<float> qkv(rows * (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim);
  for (std::size_t i = 0; i < qkv.size(); ++i) qkv[i] = std::sin(static_cast<float>(i));
  return qkv;
}

void decode(benchmark::State& state, DType dtype) {
  const Shape shape(dtype, state);
  ThreadPool pool(shape.threads);
  Caches caches(shape, kWorkingSet);
  auto qkv = queries(shape, shape.batch);
  std::vector<float> out(shape.batch * shape.num_heads * shape.head_dim);
  std::vector<ops::SequenceRows> rows;
  for (int s = 0; s < shape.batch; ++s) rows.push_back({s, 1, shape.context - 1, caches.page_table(s)});
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  for (auto _ : state)
    cpu_ops::paged_attention(pool, {qkv.data(), shape.batch, shape.num_heads, shape.num_kv_heads, shape.head_dim}, rows,
                             caches.next(), scale, 0, out.data());

  const double moved = static_cast<double>(shape.bytes()) * static_cast<double>(state.iterations());
  state.counters["GB/s"] = benchmark::Counter(moved * 1e-9, benchmark::Counter::kIsRate);
  state.counters["of_read_bandwidth"] =
      benchmark::Counter(moved / minisgl::measure_read_bandwidth(pool), benchmark::Counter::kIsRate);
}

// FLOP/s of a 512-row f32 product with these threads.
double measure_matrix_product(ThreadPool& pool) {
  constexpr std::int64_t kRows = 512, kSize = 1024;
  const std::vector<float> weight(kSize * kSize, 0.5f), x(kRows * kSize, 0.25f);
  std::vector<float> y(kRows * kSize);
  const auto packed = minisgl::PackedMatrix::pack(DType::f32, kSize, kSize, std::as_bytes(std::span(weight)), pool);
  const minisgl::GemmPart part = {&packed, nullptr, 0};
  minisgl::GemmWorkspace workspace;
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    minisgl::gemm({{&part, 1}, x.data(), kRows, y.data(), kSize}, workspace, pool);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return 2.0 * kRows * kSize * kSize / best;
}

void prefill(benchmark::State& state, DType dtype) {
  const Shape shape(dtype, state);
  ThreadPool pool(shape.threads);
  Caches caches(shape, 0);
  auto qkv = queries(shape, std::int64_t{shape.batch} * shape.context);
  std::vector<float> out(std::int64_t{shape.batch} * shape.context * shape.num_heads * shape.head_dim);
  std::vector<ops::SequenceRows> rows;
  for (int s = 0; s < shape.batch; ++s) rows.push_back({s * shape.context, shape.context, 0, caches.page_table(s)});
  const cpu_ops::QkvView view = {qkv.data(), std::int64_t{shape.batch} * shape.context, shape.num_heads,
                                 shape.num_kv_heads, shape.head_dim};
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  for (auto _ : state) cpu_ops::paged_attention(pool, view, rows, caches.next(), scale, 0, out.data());

  const double pairs = shape.batch * 0.5 * shape.context * (shape.context + 1.0);
  const double flops = 4.0 * shape.head_dim * shape.num_heads * pairs * static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsRate);
  state.counters["of_matrix_product"] =
      benchmark::Counter(flops / measure_matrix_product(pool), benchmark::Counter::kIsRate);
}

void decode_shapes(benchmark::internal::Benchmark* benchmark) {
  for (const int threads : {1, 2}) {
    for (const auto& [batch, context] : {std::pair{1, 512}, std::pair{1, 8192}, std::pair{16, 512}}) {
      benchmark->Args({threads, 9, 3, 64, batch, context});
      benchmark->Args({threads, 32, 8, 128, batch, context});
    }
  }
}

void prefill_shapes(benchmark::internal::Benchmark* benchmark) {
  for (const int threads : {1, 2}) {
    for (const int context : {512, 4096}) {
      benchmark->Args({threads, 9, 3, 64, 1, context});
      benchmark->Args({threads, 32, 8, 128, 1, context});
    }
  }
}

BENCHMARK_CAPTURE(decode, f16, DType::f16)->Apply(decode_shapes)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(decode, int8, DType::i8)->Apply(decode_shapes)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(prefill, f16, DType::f16)->Apply(prefill_shapes)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(prefill, int8, DType::i8)->Apply(prefill_shapes)->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
