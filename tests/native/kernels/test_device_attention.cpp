// Paged attention on each device against its definition in double: head sizes, pages, windows, cached prefixes and
// steps that mix prefill chunks with decode rows. What no row sees is NaN.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "kernels/device_kv_cache.h"
#include "kernels/devices.h"
#include "kernels/random_floats.h"

namespace minisgl {
namespace {

using testing_support::device_label;
using testing_support::device_of;
using testing_support::DeviceKind;
using testing_support::DeviceKvCache;
using testing_support::DeviceMatrix;
using testing_support::relative_error;
using testing_support::rounded;

struct Case {
  int num_heads, num_kv_heads, head_dim, page_size;
  DType kv_dtype;
  std::int32_t window;
  float value_size = 1.0f;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const int head_dim : {64, 80, 96, 128, 256})
    for (const int page_size : {1, 16, 64})
      all.push_back({8, 2, head_dim, page_size, page_size == 16 ? DType::f16 : DType::bf16, 0});
  all.push_back({16, 8, 128, 16, DType::bf16, 100});
  all.push_back({14, 2, 64, 16, DType::bf16, 1});
  all.push_back({9, 3, 64, 5, DType::f16, 33});
  all.push_back({4, 4, 24, 16, DType::bf16, 0});
  all.push_back({40, 2, 128, 16, DType::bf16, 0});  // more than 16 query heads for a KV head
  all.push_back({3, 1, 8, 16, DType::bf16, 50});
  for (const DType dtype : {DType::i8, DType::f8e4m3}) {
    for (const int head_dim : {64, 80, 256}) all.push_back({8, 2, head_dim, 16, dtype, 0});
    all.push_back({16, 8, 128, 64, dtype, 100});
    all.push_back({9, 3, 64, 5, dtype, 33});
    all.push_back({14, 2, 64, 1, dtype, 1});
    all.push_back({3, 1, dtype == DType::i8 ? 8 : 16, 16, dtype, 50});  // a GPU takes heads of a multiple of 16
    all.push_back({8, 2, 96, 16, dtype, 0, 1e-4f});
    all.push_back({8, 2, 128, 16, dtype, 0, 1e3f});
  }
  all.push_back({8, 2, 128, 16, DType::f8e4m3, 0});
  all.push_back({40, 2, 128, 16, DType::f8e4m3, 0});
  for (const int head_dim : {64, 256}) all.push_back({24, 2, head_dim, 16, DType::f8e4m3, 0});  // more than 8
  all.push_back({4, 4, 48, 16, DType::f8e4m3, 0});
  return all;
}

class DeviceAttention : public testing::TestWithParam<std::tuple<DeviceKind, Case>> {};

INSTANTIATE_TEST_SUITE_P(All, DeviceAttention,
                         testing::Combine(testing::Values(DeviceKind::cpu, DeviceKind::cuda),
                                          testing::ValuesIn(cases())),
                         [](const auto& info) {
                           const Case& c = std::get<1>(info.param);
                           return device_label(std::get<0>(info.param)) + "_heads" + std::to_string(c.num_heads) +
                                  "_kv" + std::to_string(c.num_kv_heads) + "_dim" + std::to_string(c.head_dim) +
                                  "_page" + std::to_string(c.page_size) + "_" +
                                  std::string(dtype_info(c.kv_dtype).name) + "_window" + std::to_string(c.window) +
                                  (c.value_size < 1   ? "_small"
                                   : c.value_size > 1 ? "_large"
                                                      : "");
                         });

// The CPU rounds nothing but its queries to 16 bits beside an int8 cache, the GPU what it multiplies to those of bf16.
double tolerance_of(DeviceKind kind, DType kv_dtype) {
  return kind == DeviceKind::cuda ? 1.2e-2 : kv_dtype == DType::i8 ? 4e-4 : 1e-5;
}

#define MINISGL_SKIP_WITHOUT_CACHE(kind, dtype) \
  MINISGL_SKIP_WITHOUT(kind);                   \
  if (!device_of(kind)->supports_kv_dtype(dtype)) GTEST_SKIP() << "no such cache on this device"

// A sequence of which `cached` positions are in the cache before the step computes `rows` more.
struct Part {
  std::int32_t cached, rows;
};

// An infinity or a NaN in one column of a position's key or value, for KV head 0.
struct Poison {
  std::size_t part;
  std::int32_t position;
  bool in_key;
  float value;
};

void expect_attention(Device& device, const Case& c, const std::vector<Part>& parts, double tolerance,
                      const std::vector<Poison>& poisons = {}) {
  const HeadShape shape{c.num_heads, c.num_kv_heads, c.head_dim};
  const std::int64_t width = shape.row_size(), dim = c.head_dim;
  const DType dtype = device.activation_dtype();
  // Pages of all sequences, shuffled; two belong to nobody.
  std::int32_t num_pages = 2;
  const auto pages_for = [&](const Part& part) { return (part.cached + part.rows + c.page_size - 1) / c.page_size; };
  for (const Part& part : parts) num_pages += pages_for(part);
  std::vector<std::int32_t> pages(num_pages);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), std::mt19937(3));

  const std::int64_t cache_size = std::int64_t{num_pages} * c.num_kv_heads * c.page_size * dim;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> keys(cache_size, nan), values(cache_size, nan), qkv;
  std::vector<std::int32_t> positions;
  std::vector<ops::SequenceRows> sequences;
  std::vector<std::vector<std::int32_t>> tables;
  const auto at = [&](const std::vector<std::int32_t>& table, std::int32_t position, int head) {
    return ((std::int64_t{table[position / c.page_size]} * c.num_kv_heads + head) * c.page_size +
            position % c.page_size) *
           dim;
  };
  int seed = 30;
  for (const Part& part : parts) {
    tables.emplace_back(pages.end() - pages_for(part), pages.end());
    pages.resize(pages.size() - tables.back().size());
    const std::int32_t first_seen = c.window > 0 ? std::max(0, part.cached - c.window + 1) : 0;
    for (std::int32_t position = first_seen; position < part.cached + part.rows; ++position) {
      for (int head = 0; head < c.num_kv_heads; ++head) {
        // Heads of different sizes, where each has a scale of its own.
        const float size = has_kv_scales(c.kv_dtype) ? 0.25f * static_cast<float>(1 + seed % 13) : 1.0f;
        const auto k = random_floats(dim, ++seed, size), v = random_floats(dim, ++seed, size * c.value_size);
        for (std::int64_t i = 0; i < dim; ++i) {
          keys[at(tables.back(), position, head) + i] = k[i];
          values[at(tables.back(), position, head) + i] = v[i];
        }
      }
    }
    const auto row_data = rounded(dtype, random_floats(part.rows * width, ++seed));
    sequences.push_back({static_cast<std::int32_t>(positions.size()), part.rows, part.cached, nullptr});
    qkv.insert(qkv.end(), row_data.begin(), row_data.end());
    for (std::int32_t i = 0; i < part.rows; ++i) positions.push_back(part.cached + i);
  }
  for (std::size_t i = 0; i < parts.size(); ++i) sequences[i].page_table = tables[i].data();
  for (const Poison& poison : poisons)
    (poison.in_key ? keys : values)[at(tables[poison.part], poison.position, 0) + dim / 2] = poison.value;

  const auto num_rows = std::ssize(positions);
  const std::vector<std::int32_t> tokens(positions.size(), 0);
  const DeviceMatrix data(device, dtype, num_rows, width, qkv), out(device, dtype, num_rows, c.num_heads * dim);
  const DeviceKvCache cache(device, c.kv_dtype, num_pages, shape, c.page_size, keys, values);
  keys = cache.keys();
  values = cache.values();
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dim)));
  device.begin_step({tokens, positions, sequences, {}, c.page_size}, {});
  for (int run = 0; run < 2; ++run) {  // the second finds what the first left of its scratch memory
    device.paged_attention(data.view(), shape, cache.layer(), scale, c.window, out.view());
  }

  const auto got = out.values();
  for (std::size_t s = 0; s < parts.size(); ++s) {
    for (std::int32_t i = 0; i < parts[s].rows; ++i) {
      const std::int64_t row = sequences[s].first_row + i;
      const std::int32_t position = positions[row];
      const std::int32_t first = c.window > 0 ? std::max(0, position - c.window + 1) : 0;
      for (int head = 0; head < c.num_heads; ++head) {
        const int kv_head = head / (c.num_heads / c.num_kv_heads);
        std::vector<double> scores;
        for (std::int32_t p = first; p <= position; ++p) {
          double dot = 0;
          for (std::int64_t k = 0; k < dim; ++k)
            dot += double{qkv[row * width + head * dim + k]} * keys[at(tables[s], p, kv_head) + k];
          scores.push_back(dot * scale);
        }
        const double top = *std::ranges::max_element(scores);
        double total = 0;
        std::vector<double> expected(dim, 0.0);
        for (std::int32_t p = first; p <= position; ++p) {
          const double weight = std::exp(scores[p - first] - top);
          total += weight;
          for (std::int64_t k = 0; k < dim; ++k) expected[k] += weight * values[at(tables[s], p, kv_head) + k];
        }
        for (double& value : expected) value /= total;
        const auto first_got = got.begin() + (row * c.num_heads + head) * dim;
        std::vector<float> actual(first_got, first_got + dim);
        if (std::isnan(total)) continue;  // a key that it sees is NaN: nothing is promised
        for (std::int64_t k = 0; k < dim; ++k) {
          if (std::isfinite(expected[k])) continue;  // it sees a value that isn't
          ASSERT_FALSE(std::isfinite(actual[k])) << "sequence " << s << ", position " << position << ", head " << head;
          expected[k] = actual[k] = 0;
        }
        if (std::ranges::all_of(expected, [](double value) { return value == 0; })) continue;
        ASSERT_LE(relative_error(actual, expected), tolerance)
            << "sequence " << s << ", position " << position << ", head " << head;
      }
    }
  }
}

TEST_P(DeviceAttention, AgreesWithItsDefinition) {
  const auto& [kind, shape] = GetParam();
  MINISGL_SKIP_WITHOUT_CACHE(kind, shape.kv_dtype);
  Device& device = *device_of(kind);
  const double tolerance = tolerance_of(kind, shape.kv_dtype);
  const std::int32_t page = shape.page_size;
  expect_attention(device, shape, {{0, 1}}, tolerance);
  expect_attention(device, shape, {{page - 1, 1}, {page, 1}, {page + 1, 1}, {0, 1}, {300, 1}}, tolerance);
  expect_attention(device, shape, {{0, 75}, {41, 33}, {page, 2}}, tolerance);
  expect_attention(device, shape, {{130, 1}, {0, page + 1}, {64, 1}, {100, 50}}, tolerance);
}

// 0 * NaN is NaN: a weight of 0 is not enough to keep out what a row does not see.
TEST_P(DeviceAttention, WhatComesLaterDoesNotReachEarlierRows) {
  const auto& [kind, shape] = GetParam();
  MINISGL_SKIP_WITHOUT_CACHE(kind, shape.kv_dtype);
  const double tolerance = tolerance_of(kind, shape.kv_dtype);
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const std::vector<Part> parts{{0, 75}, {41, 33}, {300, 1}};
  expect_attention(*device_of(kind), shape, parts, tolerance, {{0, 40, false, nan}, {1, 73, false, -infinity}});
  expect_attention(*device_of(kind), shape, parts, tolerance, {{0, 74, true, nan}, {1, 60, false, infinity}});
  expect_attention(*device_of(kind), shape, parts, tolerance, {{0, 0, false, infinity}, {0, 3, false, nan}});
}

TEST_P(DeviceAttention, LongPrefill) {
  const auto& [kind, shape] = GetParam();
  MINISGL_SKIP_WITHOUT_CACHE(kind, shape.kv_dtype);
  if (shape.page_size == 1) GTEST_SKIP() << "the same code as with larger pages, and slow to prepare";
  const float nan = std::numeric_limits<float>::quiet_NaN();
  expect_attention(*device_of(kind), shape, {{500, 150}, {0, 300}}, tolerance_of(kind, shape.kv_dtype),
                   {{0, 520, false, nan}, {1, 299, false, nan}});
}

TEST_P(DeviceAttention, LongDecode) {
  const auto& [kind, shape] = GetParam();
  MINISGL_SKIP_WITHOUT_CACHE(kind, shape.kv_dtype);
  if (shape.page_size == 1) GTEST_SKIP() << "the same code as with larger pages, and slow to prepare";
  expect_attention(*device_of(kind), shape, {{2500, 1}, {127, 1}, {128, 1}}, tolerance_of(kind, shape.kv_dtype));
}

}  // namespace
}  // namespace minisgl
