// Products on tensors of one plain dtype: against the reference, and from several threads at once.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "core/half.h"
#include "gemm/cpu_products.h"
#include "products.h"

namespace minisgl {
namespace {

// Values as a tensor of `dtype` stores them.
std::vector<std::byte> stored(DType dtype, const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * static_cast<std::size_t>(row_bytes(dtype, 1)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::f32) {
      reinterpret_cast<float*>(bytes.data())[i] = values[i];
    } else {
      reinterpret_cast<std::uint16_t*>(bytes.data())[i] =
          dtype == DType::f16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
    }
  }
  return bytes;
}

std::vector<float> read(DType dtype, const std::vector<std::byte>& bytes) {
  std::vector<float> values;
  for (std::size_t i = 0; i < bytes.size(); i += static_cast<std::size_t>(row_bytes(dtype, 1))) {
    if (dtype == DType::f32) {
      values.push_back(*reinterpret_cast<const float*>(bytes.data() + i));
    } else {
      const std::uint16_t half = *reinterpret_cast<const std::uint16_t*>(bytes.data() + i);
      values.push_back(dtype == DType::f16 ? f16_to_f32(half) : bf16_to_f32(half));
    }
  }
  return values;
}

// The tensors of a product, and the product of them.
struct Tensors {
  Tensors(DType dtype, std::int64_t rows, std::int64_t outputs, std::int64_t inputs, unsigned seed)
      : dtype(dtype),
        weights(stored(dtype, random_activations(outputs * inputs, seed))),
        bias(stored(dtype, random_activations(outputs, seed + 1))),
        x(stored(dtype, random_activations(rows * inputs, seed + 2))),
        y(static_cast<std::size_t>(rows * row_bytes(dtype, outputs)), std::byte{0x7f}),
        product{weights.data(), bias.data(), x.data(), y.data(), dtype, rows, outputs, inputs} {}
  DType dtype;
  std::vector<std::byte> weights, bias, x, y;
  TensorProduct product;
};

std::vector<double> widened(DType dtype, const std::vector<std::byte>& bytes) {
  const std::vector<float> values = read(dtype, bytes);
  return {values.begin(), values.end()};
}

class CpuProductsOf : public testing::TestWithParam<DType> {};

TEST_P(CpuProductsOf, AgreeWithTheReference) {
  const DType dtype = GetParam();
  const double tolerance = dtype == DType::f32 ? 1e-5 : dtype == DType::f16 ? 1e-3 : 8e-3;  // one rounding
  CpuProducts products;
  for (const auto& [rows, outputs, inputs] :
       {std::tuple{1, 1, 1}, {1, 130, 70}, {5, 9, 33}, {70, 200, 96}, {1, 300, 400}}) {
    Tensors tensors(dtype, rows, outputs, inputs, 7);
    for (const int num_threads : {1, 3}) {
      for (const bool has_bias : {false, true}) {
        tensors.product.bias = has_bias ? tensors.bias.data() : nullptr;
        const auto packed = products.pack(tensors.product, num_threads);
        products.run(*packed, tensors.product, num_threads);
        expect_product(read(dtype, tensors.y), widened(dtype, tensors.x), widened(dtype, tensors.weights), outputs,
                       inputs, has_bias ? read(dtype, tensors.bias) : std::vector<float>(), tolerance);
      }
    }
  }
}

TEST_P(CpuProductsOf, NoRowsWriteNothing) {
  CpuProducts products;
  Tensors tensors(GetParam(), 0, 16, 8, 1);
  tensors.product.x = tensors.product.y = nullptr;
  products.run(*products.pack(tensors.product, 2), tensors.product, 2);
}

INSTANTIATE_TEST_SUITE_P(PlainDtypes, CpuProductsOf, testing::Values(DType::f32, DType::bf16, DType::f16),
                         [](const auto& test) { return std::string(dtype_info(test.param).name); });

TEST(CpuProducts, ThreadsTakeTurns) {
  CpuProducts products;
  constexpr int kCallers = 4;
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      const DType dtype = caller % 2 == 0 ? DType::f32 : DType::bf16;
      const int num_threads = 1 + caller % 3;
      Tensors tensors(dtype, 3 + caller, 64 + 8 * caller, 200, static_cast<unsigned>(10 * caller));
      const auto packed = products.pack(tensors.product, num_threads);
      products.run(*packed, tensors.product, num_threads);
      const std::vector<std::byte> first = tensors.y;
      for (int i = 0; i < 30; ++i) {
        tensors.y.assign(tensors.y.size(), std::byte{0});
        products.run(*products.pack(tensors.product, num_threads), tensors.product, num_threads);
        wrong += tensors.y != first;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace minisgl
