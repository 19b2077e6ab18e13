// What ranks sum in tests, and what must come out, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "core/dtype.h"
#include "core/half.h"

namespace minisgl {

// [count] random numbers of a rank in dtype.
inline std::vector<std::byte> random_part(int rank, std::int64_t count, DType dtype) {
  std::mt19937 random(static_cast<unsigned>(rank * 7919 + count));
  std::normal_distribution<float> normal;
  std::vector<std::byte> part(static_cast<std::size_t>(row_bytes(dtype, count)));
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = normal(random);
    const std::uint16_t half = dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
    const void* source = dtype == DType::f32 ? static_cast<const void*>(&value) : &half;
    std::memcpy(part.data() + row_bytes(dtype, i), source, static_cast<std::size_t>(row_bytes(dtype, 1)));
  }
  return part;
}

inline float element(const std::vector<std::byte>& part, std::int64_t i, DType dtype) {
  float value = 0;
  std::uint16_t half = 0;
  std::memcpy(dtype == DType::f32 ? static_cast<void*>(&value) : &half, part.data() + row_bytes(dtype, i),
              static_cast<std::size_t>(row_bytes(dtype, 1)));
  return dtype == DType::f32 ? value : dtype == DType::f16 ? f16_to_f32(half) : bf16_to_f32(half);
}

// The sum over ranks of random_part, in the order of ranks, rounded once.
inline std::vector<std::byte> expected_sum(int size, std::int64_t count, DType dtype) {
  std::vector<float> sums(static_cast<std::size_t>(count));
  for (int rank = 0; rank < size; ++rank) {
    const auto part = random_part(rank, count, dtype);
    for (std::int64_t i = 0; i < count; ++i) {
      float& sum = sums[static_cast<std::size_t>(i)];
      sum = rank == 0 ? element(part, i, dtype) : sum + element(part, i, dtype);
    }
  }
  std::vector<std::byte> expected(static_cast<std::size_t>(row_bytes(dtype, count)));
  for (std::int64_t i = 0; i < count; ++i) {
    const float sum = sums[static_cast<std::size_t>(i)];
    const std::uint16_t half = dtype == DType::f16 ? f32_to_f16(sum) : f32_to_bf16(sum);
    const void* source = dtype == DType::f32 ? static_cast<const void*>(&sum) : &half;
    std::memcpy(expected.data() + row_bytes(dtype, i), source, static_cast<std::size_t>(row_bytes(dtype, 1)));
  }
  return expected;
}

}  // namespace minisgl
