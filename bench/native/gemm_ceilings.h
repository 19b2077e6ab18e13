// What this processor's arithmetic units give at best: independent multiply-adds on registers, nothing loaded.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "core/cpu_features.h"
#include "core/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "gemm/cpu/amx/tiles.h"
#endif

namespace minisgl::bench {

struct Ceilings {
  double int8_ops = 0;  // operations a second of all threads; a multiply and an add are two
  double f32_ops = 0;
  double bf16_ops = 0;  // 0 where the instruction set doesn't multiply bf16 by bf16
};

#if defined(__x86_64__)

// One u8 x s8 step as the AVX2 kernels have it: maddubs, then an addition of 16 bits. 64 operations each.
__attribute__((target("avx2"))) inline std::int64_t spin_int8(std::int64_t steps) {
  __m256i sums[8], weights[2] = {_mm256_set1_epi8(3), _mm256_set1_epi8(5)}, x = _mm256_set1_epi8(-7);
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (std::int64_t step = 0; step < steps; step += 8) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      asm("" : "+x"(x));  // the product is not a constant
      sums[i] = _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(weights[i % 2], x));
    }
  }
  for (int i = 1; i < 8; ++i) sums[0] = _mm256_add_epi16(sums[0], sums[i]);
  return _mm256_extract_epi64(sums[0], 0);
}
constexpr double int8_ops_per_step = 64;

__attribute__((target("avx2,fma"))) inline float spin_f32(std::int64_t steps) {
  __m256 sums[10], a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  for (std::int64_t step = 0; step < steps; step += 10) {
#pragma GCC unroll 10
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(a, b, sum);
  }
  for (int i = 1; i < 10; ++i) sums[0] = _mm256_add_ps(sums[0], sums[i]);
  return _mm256_cvtss_f32(sums[0]);
}
constexpr double f32_ops_per_step = 16;

// The same as the AVX-512 kernels have it: vpdpbusd on 64 bytes, and a multiply-add of 16 lanes.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // in headers of GCC 12, where it is meant
__attribute__((target("avx512f,avx512vnni"))) inline std::int64_t spin_int8_avx512(std::int64_t steps) {
  __m512i sums[16], weights[2] = {_mm512_set1_epi8(3), _mm512_set1_epi8(5)}, x = _mm512_set1_epi8(-7);
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (std::int64_t step = 0; step < steps; step += 16) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      asm("" : "+v"(x));  // the product is not a constant
      sums[i] = _mm512_dpbusd_epi32(sums[i], weights[i % 2], x);
    }
  }
  for (int i = 1; i < 16; ++i) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
  return _mm512_reduce_add_epi32(sums[0]);
}
constexpr double int8_ops_per_step_avx512 = 128;

__attribute__((target("avx512f"))) inline float spin_f32_avx512(std::int64_t steps) {
  __m512 sums[16], a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (std::int64_t step = 0; step < steps; step += 16) {
#pragma GCC unroll 16
    for (__m512& sum : sums) {
      asm("" : "+v"(a));
      sum = _mm512_fmadd_ps(a, b, sum);
    }
  }
  for (int i = 1; i < 16; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  return _mm512_reduce_add_ps(sums[0]);
}
constexpr double f32_ops_per_step_avx512 = 32;

// vdpbf16ps: two multiply-adds in each of 16 lanes.
__attribute__((target("avx512f,avx512bf16"))) inline float spin_bf16_avx512(std::int64_t steps) {
  __m512 sums[16];
  __m512i a = _mm512_set1_epi16(0x3f00);
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (std::int64_t step = 0; step < steps; step += 16) {
#pragma GCC unroll 16
    for (__m512& sum : sums) {
      asm("" : "+v"(a));
      sum = _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)a);
    }
  }
  for (int i = 1; i < 16; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  return _mm512_reduce_add_ps(sums[0]);
}
constexpr double bf16_ops_per_step_avx512 = 64;

// tdpbf16ps on full tiles: 16 x 16 sums of 32 products.
inline std::int64_t spin_bf16_amx(std::int64_t steps) {
  using Tiles = amx::HardwareTiles;
  Tiles::configure(16);
  for (std::int64_t step = 0; step < steps; step += 4) {
    Tiles::multiply<0, 4, 6>();
    Tiles::multiply<1, 4, 7>();
    Tiles::multiply<2, 5, 6>();
    Tiles::multiply<3, 5, 7>();
  }
  Tiles::release();
  return steps;
}
constexpr double bf16_ops_per_step_amx = 2 * 16 * 16 * 32;

// tdpbssd on full tiles: 16 x 16 sums of 64 products.
inline std::int64_t spin_int8_amx(std::int64_t steps) {
  using Tiles = amx::HardwareTiles;
  Tiles::configure(16);
  for (std::int64_t step = 0; step < steps; step += 4) {
    Tiles::multiply_bytes<0, 4, 6>();
    Tiles::multiply_bytes<1, 4, 7>();
    Tiles::multiply_bytes<2, 5, 6>();
    Tiles::multiply_bytes<3, 5, 7>();
  }
  Tiles::release();
  return steps;
}
constexpr double int8_ops_per_step_amx = 2 * 16 * 16 * 64;
#pragma GCC diagnostic pop

template <typename Spin>
double measure_ops(ThreadPool& pool, Spin spin, double ops_per_step) {
  constexpr std::int64_t steps = 20'000'000;
  std::vector<double> rates;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    pool.parallel_for(pool.num_threads(), [&](std::int64_t, int) {
      volatile auto result = spin(steps);
      static_cast<void>(result);
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    rates.push_back(ops_per_step * steps * pool.num_threads() / seconds.count());
  }
  std::nth_element(rates.begin(), rates.begin() + 2, rates.end());
  return rates[2];
}

// The ceilings of the instruction set that the kernels were chosen for.
inline Ceilings measure_ceilings(ThreadPool& pool) {
  if (base_isa(cpu_isa()) != CpuIsa::avx512vnni)
    return {.int8_ops = measure_ops(pool, spin_int8, int8_ops_per_step),
            .f32_ops = measure_ops(pool, spin_f32, f32_ops_per_step)};
  Ceilings ceilings{.int8_ops = measure_ops(pool, spin_int8_avx512, int8_ops_per_step_avx512),
                    .f32_ops = measure_ops(pool, spin_f32_avx512, f32_ops_per_step_avx512)};
  if (cpu_isa() == CpuIsa::amx) {
    ceilings.bf16_ops = measure_ops(pool, spin_bf16_amx, bf16_ops_per_step_amx);
    ceilings.int8_ops = measure_ops(pool, spin_int8_amx, int8_ops_per_step_amx);
  } else if (cpu_isa() == CpuIsa::avx512bf16) {
    ceilings.bf16_ops = measure_ops(pool, spin_bf16_avx512, bf16_ops_per_step_avx512);
  }
  return ceilings;
}

#else

inline Ceilings measure_ceilings(ThreadPool&) {
  return {};
}  // no ceiling is known for this processor

#endif

}  // namespace minisgl::bench
