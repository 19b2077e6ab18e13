// Products of a user's tensors on a GPU against the product in double: odd shapes, addresses and streams, in and out of
// graphs.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <tuple>
#include <vector>

#include "comm/cuda/device_memory.h"
#include "core/error.h"
#include "gemm/cuda/cublaslt.h"
#include "gemm/tensor_product.h"
#include "kernels/devices.h"

namespace minisgl {
namespace {

using testing_support::loaded;
using testing_support::rounded;
using testing_support::stored;

bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}
#define MINISGL_SKIP_WITHOUT_GPU() \
  if (!has_gpu()) GTEST_SKIP() << "needs a GPU"

GpuProducts& products() {
  static const std::unique_ptr<GpuProducts> all = make_gpu_products(0);
  return *all;
}

std::vector<float> random_values(std::int64_t count, unsigned seed, DType dtype) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(random);
  return rounded(dtype, values);
}

std::int64_t bytes_of(DType dtype) {
  return row_bytes(dtype, 1);
}

// A tensor that begins `offset` elements into its memory.
struct Values {
  Values(DType dtype, const std::vector<float>& host, std::int64_t offset)
      : dtype(dtype), offset(offset), memory(placed(dtype, host, offset)) {}
  static std::vector<std::byte> placed(DType dtype, const std::vector<float>& host, std::int64_t offset) {
    std::vector<float> all(static_cast<std::size_t>(offset), 7.0f);
    all.insert(all.end(), host.begin(), host.end());
    return stored(dtype, all);
  }
  void set(const std::vector<float>& host) { memory.set(placed(dtype, host, offset)); }
  std::vector<float> get() const {
    const std::vector<float> all = loaded(dtype, memory.get());
    return {all.begin() + offset, all.end()};
  }
  std::byte* data() const { return memory.data() + offset * bytes_of(dtype); }

  DType dtype;
  std::int64_t offset;
  DeviceMemory memory;
};

struct Shape {
  std::int64_t rows, outputs, inputs;
};

struct Problem {
  Problem(DType dtype, Shape shape, bool has_bias, std::int64_t offset = 0, unsigned seed = 1)
      : dtype(dtype),
        shape(shape),
        w(random_values(shape.outputs * shape.inputs, seed, dtype)),
        x(random_values(shape.rows * shape.inputs, seed + 1, dtype)),
        bias(has_bias ? random_values(shape.outputs, seed + 2, dtype) : std::vector<float>()),
        device_w(dtype, w, offset),
        device_x(dtype, x, offset),
        device_bias(dtype, bias, offset),
        device_y(dtype, std::vector<float>(static_cast<std::size_t>(shape.rows * shape.outputs), NAN), offset) {}

  TensorProduct product() const {
    return {device_w.data(), bias.empty() ? nullptr : device_bias.data(),
            device_x.data(), device_y.data(),
            dtype,           shape.rows,
            shape.outputs,   shape.inputs};
  }

  double magnitude_of_parts(double sum, std::int64_t output, double squares) const {
    const double added = bias.empty() ? 0.0 : double{bias[static_cast<std::size_t>(output)]};
    return std::abs(sum) + std::abs(sum - added) + std::sqrt(squares);
  }

  void expect_product() const {
    const std::vector<float> y = device_y.get();
    const double step = dtype == DType::f32 ? 1e-6 : dtype == DType::f16 ? 1.0 / 1024 : 1.0 / 128;
    int wrong = 0;
    for (std::int64_t r = 0; r < shape.rows; ++r) {
      for (std::int64_t o = 0; o < shape.outputs; ++o) {
        double sum = bias.empty() ? 0.0 : double{bias[static_cast<std::size_t>(o)]}, magnitude = std::abs(sum),
               squares = 0;
        for (std::int64_t i = 0; i < shape.inputs; ++i) {
          const double term = double{w[static_cast<std::size_t>(o * shape.inputs + i)]} *
                              double{x[static_cast<std::size_t>(r * shape.inputs + i)]};
          sum += term;
          magnitude += std::abs(term);
          squares += term * term;
        }
        const double got = double{y[static_cast<std::size_t>(r * shape.outputs + o)]};
        // Kernels may round the parts of a sum, and the sum before the bias is added, as they round the result.
        const double rounded_size = dtype == DType::f32 ? std::abs(sum) : magnitude_of_parts(sum, o, squares);
        if (!(std::abs(got - sum) <= step * rounded_size + 2e-6 * magnitude) && ++wrong <= 3)
          ADD_FAILURE() << "row " << r << ", output " << o << ": " << got << " instead of " << sum;
      }
    }
    EXPECT_EQ(wrong, 0) << dtype_info(dtype).name << ", " << shape.rows << " x " << shape.outputs << " x "
                        << shape.inputs << ", " << (bias.empty() ? "no bias" : "bias") << ", offset "
                        << device_w.offset;
  }

  DType dtype;
  Shape shape;
  std::vector<float> w, x, bias;
  Values device_w, device_x, device_bias, device_y;
};

void run(GpuProducts& by, const TensorProduct& product, const CudaStream& stream) {
  by.run(product, reinterpret_cast<std::uintptr_t>(stream.get()));
}

class TensorProductOf : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override { MINISGL_SKIP_WITHOUT_GPU(); }
};

constexpr Shape kShapes[] = {{1, 1, 1},      {1, 64, 2048},  {1, 130, 1001}, {3, 5, 7},     {8, 1100, 72},
                             {9, 33, 64},    {16, 257, 712}, {16, 100, 100}, {17, 40, 72},  {33, 70, 129},
                             {64, 128, 256}, {70, 9, 1},     {300, 100, 51}, {2, 4300, 64}, {257, 264, 1032}};

TEST_P(TensorProductOf, IsTheProduct) {
  const CudaStream stream = make_stream();
  for (const Shape shape : kShapes) {
    for (const bool has_bias : {false, true}) {
      for (const std::int64_t offset : {0, 1, 8}) {
        const Problem problem(GetParam(), shape, has_bias, offset);
        run(products(), problem.product(), stream);  // measured
        MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
        problem.expect_product();
      }
    }
  }
}

TEST_P(TensorProductOf, SharesAChoiceWithOtherRows) {
  const CudaStream stream = make_stream();
  for (const std::int64_t rows : {8, 5, 2, 120, 128, 65, 50, 64, 16, 11}) {
    const Problem problem(GetParam(), {rows, 72, 136}, true);
    run(products(), problem.product(), stream);
    MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
    problem.expect_product();
  }
}

TEST_P(TensorProductOf, NothingIsNothing) {
  for (const Shape shape : {Shape{0, 16, 16}, Shape{16, 0, 16}, Shape{0, 0, 0}})
    products().run({nullptr, nullptr, nullptr, nullptr, GetParam(), shape.rows, shape.outputs, shape.inputs}, 0);
  MINISGL_CUDA_CHECK(cudaDeviceSynchronize());
}

TEST_P(TensorProductOf, NoInputsGiveTheBias) {
  for (const bool has_bias : {false, true}) {
    const Problem problem(GetParam(), {35, 40, 0}, has_bias);
    products().run(problem.product(), 0);
    MINISGL_CUDA_CHECK(cudaDeviceSynchronize());
    problem.expect_product();
  }
}

TEST_P(TensorProductOf, TheDefaultStreamWillDo) {
  const Problem problem(GetParam(), {4, 48, 64}, true);
  products().run(problem.product(), 0);
  MINISGL_CUDA_CHECK(cudaDeviceSynchronize());
  problem.expect_product();
}

// Of shapes that are used for the first time in the capture, and of others; replayed for new values.
TEST_P(TensorProductOf, IsCapturedAndReplayed) {
  const CudaStream stream = make_stream(), capturing = make_stream();
  for (const std::int64_t rows : {1, 12, 40, 200}) {
    for (const bool measured : {false, true}) {
      const auto own = make_gpu_products(0);
      Problem problem(GetParam(), {rows, 264, 1032}, true);
      if (measured) {
        run(*own, problem.product(), stream);
        MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
      }
      const CudaGraphExec graph = record(capturing, [&] {
        run(*own, problem.product(), capturing);
        run(*own, problem.product(), capturing);
      });
      for (unsigned seed = 10; seed < 13; ++seed) {
        problem.x = random_values(rows * 1032, seed, GetParam());
        problem.device_x.set(problem.x);
        problem.w = random_values(264 * 1032, seed + 1, GetParam());
        problem.device_w.set(problem.w);
        MINISGL_CUDA_CHECK(cudaGraphLaunch(graph.get(), stream.get()));
        MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
        problem.expect_product();
      }
    }
  }
}

// As torch captures: meanwhile a shape is measured on another stream of the thread, and on another thread.
TEST_P(TensorProductOf, MeasuresWhileAnotherStreamIsCaptured) {
  const CudaStream stream = make_stream(), capturing = make_stream();
  const Problem captured(GetParam(), {40, 72, 264}, true), here(GetParam(), {40, 72, 272}, true),
      there(GetParam(), {40, 72, 280}, true);
  MINISGL_CUDA_CHECK(cudaStreamBeginCapture(capturing.get(), cudaStreamCaptureModeGlobal));
  run(products(), captured.product(), capturing);
  run(products(), here.product(), stream);
  std::thread([&] { run(products(), there.product(), stream); }).join();
  const CudaGraphExec exec = end_capture(capturing.get());
  MINISGL_CUDA_CHECK(cudaGraphLaunch(exec.get(), stream.get()));
  MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  for (const Problem* problem : {&captured, &here, &there}) problem->expect_product();
}

// The kernel before writes weights, x and bias; nothing of them may be read sooner.
TEST_P(TensorProductOf, ReadsWhatWasWrittenJustBefore) {
  const CudaStream stream = make_stream();
  for (const std::int64_t rows : {1, 16, 48}) {
    Problem problem(GetParam(), {rows, 4096, 256}, true), other(GetParam(), {rows, 4096, 256}, true, 0, 9);
    run(products(), problem.product(), stream);
    const std::vector<float> expected[] = {[&] {
                                             run(products(), problem.product(), stream);
                                             MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
                                             return problem.device_y.get();
                                           }(),
                                           [&] {
                                             run(products(), other.product(), stream);
                                             MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
                                             return other.device_y.get();
                                           }()};
    const Problem target(GetParam(), {rows, 4096, 256}, true);
    const auto copy = [&](const Values& from, const Values& to, std::int64_t count) {
      MINISGL_CUDA_CHECK(cudaMemcpyAsync(to.data(), from.data(), static_cast<std::size_t>(count * bytes_of(GetParam())),
                                         cudaMemcpyDeviceToDevice, stream.get()));
    };
    for (int turn = 0; turn < 40; ++turn) {
      const Problem& source = turn % 2 == 0 ? problem : other;
      run(products(), source.product(), stream);  // lets the next start early
      copy(source.device_x, target.device_x, rows * 256);
      copy(source.device_bias, target.device_bias, 4096);
      copy(source.device_w, target.device_w, 4096 * 256);
      run(products(), target.product(), stream);
      MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
      ASSERT_EQ(target.device_y.get(), expected[turn % 2]) << rows << " rows, turn " << turn;
    }
  }
}

// A product's y is the next one's x, and then its weights: each waits for all of the one before.
TEST_P(TensorProductOf, FollowOneAnotherOnAStream) {
  const CudaStream stream = make_stream();
  const std::int64_t n = 16;
  const Problem first(GetParam(), {n, 512, 8}, false), second(GetParam(), {n, 512, 512}, true, 0, 5);
  const Values last(GetParam(), std::vector<float>(static_cast<std::size_t>(n * n)), 0);
  const auto chain = [&] {
    run(products(), first.product(), stream);
    TensorProduct next = second.product();
    next.x = first.device_y.data();
    run(products(), next, stream);
    // y of the second as weights [16, 512] for the rows of the first
    run(products(), {second.device_y.data(), nullptr, first.device_y.data(), last.data(), GetParam(), n, n, 512},
        stream);
  };
  chain();
  MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  const std::vector<float> expected = last.get();
  for (int turn = 0; turn < 100; ++turn) chain();
  MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  EXPECT_EQ(last.get(), expected);
}

TEST_P(TensorProductOf, StreamsDoNotDisturbEachOther) {
  constexpr int kThreads = 4;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      MINISGL_CUDA_CHECK(cudaSetDevice(0));
      const CudaStream stream = make_stream();
      const Problem problem(GetParam(), {i % 2 == 0 ? 48 : 8, 256, 4096}, true, 0, static_cast<unsigned>(i));
      for (int turn = 0; turn < 50; ++turn) run(products(), problem.product(), stream);
      MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
      problem.expect_product();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

INSTANTIATE_TEST_SUITE_P(GpuTensors, TensorProductOf, testing::Values(DType::f32, DType::bf16, DType::f16),
                         [](const auto& info) { return std::string(dtype_info(info.param).name); });

TEST(TensorProduct, RefusesOtherDtypesAndSizes) {
  MINISGL_SKIP_WITHOUT_GPU();
  EXPECT_THROW(products().run({nullptr, nullptr, nullptr, nullptr, DType::q8_0, 1, 1, 32}, 0), InputError);
  EXPECT_THROW(products().run({nullptr, nullptr, nullptr, nullptr, DType::f32, -1, 1, 1}, 0), InputError);
  EXPECT_THROW(products().run({nullptr, nullptr, nullptr, nullptr, DType::f32, 1, std::int64_t{1} << 31, 1}, 0),
               InputError);
}

TEST(TensorProduct, RowsShareAChoiceUpToTheNextStep) {
  for (const auto& [rows, choice] :
       std::vector<std::pair<std::int64_t, std::int64_t>>{{9, 16}, {16, 16}, {17, 32}, {64, 64}, {65, 128}, {129, 256}})
    EXPECT_EQ(cuda::rows_of_choice(rows), choice);
}

}  // namespace
}  // namespace minisgl
