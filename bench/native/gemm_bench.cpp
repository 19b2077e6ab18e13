// GEMM by format, shape and number of rows, beside the read bandwidth and the arithmetic peak of the same process.
//
//   of_bandwidth   weight bytes a second, as the file has them, over what measure_read_bandwidth saw: what counts for
//                  one row
//   of_peak        operations a second over the int8 (quantised formats), f32 or bf16 peak: what counts for many rows
// Names that end with a format have rows of it in and out; the others have f32 rows.
// The matrices of one row are many, so that none is in a cache when its turn comes. Threads: MINISGL_BENCH_THREADS, or
// all.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/bandwidth.h"
#include "gemm/gemm.h"
#include "gemm_ceilings.h"

namespace minisgl {
namespace {

struct Shape {
  std::int64_t outputs, inputs;
};
// SmolLM2-135M's: gate, down, query, head; and a square one that is no multiple of the tiles.
constexpr Shape shapes[] = {{1536, 576}, {576, 1536}, {576, 576}, {49152, 576}, {2050, 2048}};
constexpr Shape layer_shape = {4096, 14336};  // a large layer, in no cache: rows as torch's layers have them
constexpr std::size_t uncached_bytes = std::size_t{192} << 20;

ThreadPool& pool() {
  static ThreadPool threads([] {
    const char* wanted = std::getenv("MINISGL_BENCH_THREADS");
    return wanted ? std::atoi(wanted) : static_cast<int>(std::thread::hardware_concurrency());
  }());
  return threads;
}

double read_bandwidth() {
  static const double bytes_per_second = measure_read_bandwidth(pool());
  return bytes_per_second;
}

double peak_ops(DType weights, DType rows) {
  static const bench::Ceilings ceilings = bench::measure_ceilings(pool());
  if (weights == DType::bf16 && rows == DType::bf16 && ceilings.bf16_ops > 0) return ceilings.bf16_ops;
  return is_quantized(weights) ? ceilings.int8_ops : ceilings.f32_ops;
}

// Stored weights of random bits; all their scales are small numbers, so that nothing overflows or is subnormal.
PackedMatrix random_matrix(DType dtype, Shape shape) {
  std::mt19937 random(1);
  std::vector<std::byte> file(static_cast<std::size_t>(shape.outputs * row_bytes(dtype, shape.inputs)));
  for (std::byte& byte : file) byte = static_cast<std::byte>((random() & 0x33) | 0x10);
  return PackedMatrix::pack(dtype, shape.outputs, shape.inputs, file, pool());
}

void run_gemm(benchmark::State& state, DType dtype, Shape shape, std::int64_t num_rows, DType row_dtype) {
  std::vector<PackedMatrix> weights;
  do {
    weights.push_back(random_matrix(dtype, shape));
  } while (num_rows == 1 && weights.size() * weights.front().nbytes() < uncached_bytes);
  std::vector<std::byte> x(static_cast<std::size_t>(num_rows * row_bytes(row_dtype, shape.inputs)), std::byte{0x3e});
  std::vector<std::byte> y(static_cast<std::size_t>(num_rows * row_bytes(row_dtype, shape.outputs)));
  GemmWorkspace workspace;
  std::size_t turn = 0;
  for (auto _ : state) {
    const GemmPart part{&weights[turn++ % weights.size()], nullptr, 0};
    gemm({.parts = {&part, 1},
          .x = x.data(),
          .num_rows = num_rows,
          .y = y.data(),
          .y_stride = shape.outputs,
          .x_dtype = row_dtype,
          .y_dtype = row_dtype},
         workspace, pool());
    benchmark::ClobberMemory();
  }
  using benchmark::Counter;
  const auto runs = static_cast<double>(state.iterations());
  const double bytes = runs * static_cast<double>(shape.outputs * row_bytes(dtype, shape.inputs));
  const double ops = runs * 2.0 * static_cast<double>(num_rows * shape.outputs * shape.inputs);
  state.counters["GB/s"] = Counter(bytes / 1e9, Counter::kIsRate);
  // Where it counts, it is measured at the same moment: other programs take their share of both.
  const double bandwidth = num_rows == 1 ? measure_read_bandwidth(pool(), uncached_bytes) : read_bandwidth();
  state.counters["of_bandwidth"] = Counter(bytes / bandwidth, Counter::kIsRate);
  state.counters["GOP/s"] = Counter(ops / 1e9, Counter::kIsRate);
  const double peak = peak_ops(dtype, row_dtype);
  if (peak > 0) state.counters["of_peak"] = Counter(ops / peak, Counter::kIsRate);
}

void add_benchmark(DType dtype, Shape shape, std::int64_t rows, DType row_dtype) {
  std::string name = "gemm/" + std::string(dtype_info(dtype).name) + "/" + std::to_string(shape.outputs) + "x" +
                     std::to_string(shape.inputs) + "/rows:" + std::to_string(rows);
  if (row_dtype != DType::f32) name += "/" + std::string(dtype_info(row_dtype).name);
  benchmark::RegisterBenchmark(name.c_str(), run_gemm, dtype, shape, rows, row_dtype)
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond)
      ->MinTime(0.2);
}

[[maybe_unused]] const bool registered = [] {
  for (DType dtype : all_dtypes) {
    for (Shape shape : shapes) {
      if (shape.inputs % dtype_info(dtype).block_size != 0) continue;
      for (std::int64_t rows : {1, 4, 16, 64, 512}) {
        if (rows > 64 && shape.outputs > 10000) continue;  // the head is asked for few rows only
        add_benchmark(dtype, shape, rows, DType::f32);
      }
    }
  }
  for (DType dtype : {DType::f32, DType::f16, DType::bf16})
    for (std::int64_t rows : {1, 16, 64, 256}) add_benchmark(dtype, layer_shape, rows, dtype);
  benchmark::AddCustomContext("instruction set", cpu_isa_name());
  benchmark::AddCustomContext("threads", std::to_string(pool().num_threads()));
  benchmark::AddCustomContext("read bandwidth, GB/s", std::to_string(read_bandwidth() / 1e9));
  benchmark::AddCustomContext("int8 peak, GOP/s", std::to_string(peak_ops(DType::q8_0, DType::f32) / 1e9));
  benchmark::AddCustomContext("f32 peak, GOP/s", std::to_string(peak_ops(DType::f32, DType::f32) / 1e9));
  benchmark::AddCustomContext("bf16 peak, GOP/s", std::to_string(peak_ops(DType::bf16, DType::bf16) / 1e9));
  return true;
}();

}  // namespace
}  // namespace minisgl
