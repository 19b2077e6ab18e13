// Paged attention on each device against its definition in double: head sizes, pages, windows, cached prefixes and
// steps that mix prefill chunks with decode rows. What no row sees is NaN.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <optional>
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
  float sharpness = 1.0f;  // of the softmax
  bool sinks = false;
  float cap = 0.0f;  // of the scores
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const int head_dim : {64, 80, 96, 128, 256})
    for (const int page_size : {1, 16, 64})
      all.push_back({8, 2, head_dim, page_size, page_size == 16 ? DType::f16 : DType::bf16, 0});
  all.push_back({16, 8, 128, 16, DType::bf16, 100});
  all.push_back({16, 8, 64, 8, DType::bf16, 0});
  all.push_back({14, 2, 64, 16, DType::bf16, 1});
  all.push_back({9, 3, 64, 5, DType::f16, 33});
  all.push_back({4, 4, 24, 16, DType::bf16, 0});
  all.push_back({40, 2, 128, 16, DType::bf16, 0});  // more than 16 query heads for a KV head
  all.push_back({3, 1, 8, 16, DType::bf16, 50});
  for (const int head_dim : {64, 128, 256}) {  // far greater scores keep coming
    all.push_back({8, 2, head_dim, 16, DType::bf16, 0, 1.0f, 400.0f});
    all.push_back({6, 2, head_dim, 16, DType::f16, 200, 1.0f, 400.0f});
  }
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
  for (const DType dtype : {DType::bf16, DType::f16, DType::f8e4m3}) {
    for (const std::int32_t window : {0, 100}) {
      all.push_back({.num_heads = 16,
                     .num_kv_heads = 2,
                     .head_dim = 64,
                     .page_size = 16,
                     .kv_dtype = dtype,
                     .window = window,
                     .sinks = true});
    }
    for (const int head_dim : {64, 128, 256}) {
      all.push_back({.num_heads = 8,
                     .num_kv_heads = 4,
                     .head_dim = head_dim,
                     .page_size = 16,
                     .kv_dtype = dtype,
                     .window = head_dim == 128 ? 100 : 0,
                     .sharpness = 5.0f,  // of more, prefill's rounding of an fp8 cache's keys to f16 is seen
                     .cap = 2.0f});
    }
    all.push_back({.num_heads = 24,
                   .num_kv_heads = 2,
                   .head_dim = 80,
                   .page_size = 4,
                   .kv_dtype = dtype,
                   .window = 33,
                   .sharpness = 5.0f,
                   .sinks = true,
                   .cap = 2.0f});
  }
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
                                                      : "") +
                                  (c.sharpness > 1 ? "_sharp" : "") + (c.sinks ? "_sinks" : "") +
                                  (c.cap > 0 ? "_capped" : "");
                         });

// The CPU rounds nothing but its queries to 16 bits beside an int8 cache, the GPU what it multiplies to those of bf16.
// An error of a score is one of its weight's logarithm.
double tolerance_of(DeviceKind kind, const Case& c) {
  return kind == DeviceKind::cuda ? 1.2e-2 : c.kv_dtype == DType::i8 ? 4e-4 : 1e-5 * c.sharpness;
}

#define MINISGL_SKIP_WITHOUT_CACHE(kind, shape) \
  MINISGL_SKIP_WITHOUT(kind);                   \
  if (!device_of(kind)->supports_kv_dtype(shape.kv_dtype)) GTEST_SKIP() << "no such cache on this device"

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

// A step over these parts, and what is in the cache.
struct Contents {
  std::int32_t num_pages = 2;  // of all sequences; two belong to nobody
  std::vector<float> keys, values;
  std::vector<float> qkv;  // [positions, row_size]
  std::vector<std::int32_t> positions;
  std::vector<ops::SequenceRows> sequences;
  std::vector<std::vector<std::int32_t>> tables;
};

std::int64_t slot_of(const Case& c, const std::vector<std::int32_t>& table, std::int32_t position, int head) {
  return ((std::int64_t{table[position / c.page_size]} * c.num_kv_heads + head) * c.page_size +
          position % c.page_size) *
         c.head_dim;
}

std::int32_t first_seen_from(const Case& c, std::int32_t position) {
  return c.window > 0 ? std::max(0, position - c.window + 1) : 0;
}

Contents make_contents(const Case& c, DType dtype, const std::vector<Part>& parts, const std::vector<Poison>& poisons) {
  const std::int64_t width = HeadShape{c.num_heads, c.num_kv_heads, c.head_dim}.row_size(), dim = c.head_dim;
  Contents contents;
  const auto pages_for = [&](const Part& part) { return (part.cached + part.rows + c.page_size - 1) / c.page_size; };
  for (const Part& part : parts) contents.num_pages += pages_for(part);
  std::vector<std::int32_t> pages(contents.num_pages);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), std::mt19937(3));

  const std::int64_t cache_size = std::int64_t{contents.num_pages} * c.num_kv_heads * c.page_size * dim;
  contents.keys.assign(cache_size, std::numeric_limits<float>::quiet_NaN());
  contents.values = contents.keys;
  int seed = 30;
  for (const Part& part : parts) {
    const auto& table = contents.tables.emplace_back(pages.end() - pages_for(part), pages.end());
    pages.resize(pages.size() - table.size());
    for (std::int32_t position = first_seen_from(c, part.cached); position < part.cached + part.rows; ++position) {
      for (int head = 0; head < c.num_kv_heads; ++head) {
        // Heads of different sizes, where each has a scale of its own.
        const float size = has_kv_scales(c.kv_dtype) ? 0.25f * static_cast<float>(1 + seed % 13) : 1.0f;
        const auto k = random_floats(dim, ++seed, size), v = random_floats(dim, ++seed, size * c.value_size);
        std::ranges::copy(k, contents.keys.begin() + slot_of(c, table, position, head));
        std::ranges::copy(v, contents.values.begin() + slot_of(c, table, position, head));
      }
    }
    const auto row_data = rounded(dtype, random_floats(part.rows * width, ++seed));
    const auto first_row = static_cast<std::int32_t>(contents.positions.size());
    contents.sequences.push_back({first_row, part.rows, part.cached, nullptr});
    contents.qkv.insert(contents.qkv.end(), row_data.begin(), row_data.end());
    for (std::int32_t i = 0; i < part.rows; ++i) contents.positions.push_back(part.cached + i);
  }
  for (std::size_t i = 0; i < parts.size(); ++i) contents.sequences[i].page_table = contents.tables[i].data();
  for (const Poison& poison : poisons) {
    std::vector<float>& poisoned = poison.in_key ? contents.keys : contents.values;
    poisoned[slot_of(c, contents.tables[poison.part], poison.position, 0) + dim / 2] = poison.value;
  }
  return contents;
}

float scale_of(const Case& c) {
  return static_cast<float>(c.sharpness / std::sqrt(static_cast<double>(c.head_dim)));
}

// [num_heads] from far below any score to far above.
std::vector<float> sinks_of(const Case& c) {
  std::vector<float> sinks = random_floats(c.num_heads, 77, 4.0f);
  sinks.front() = -30.0f;
  sinks.back() = 30.0f;
  return sinks;
}

// [head_dim] what a row's head comes to, by definition; none where it sees a key that is NaN: nothing is promised then.
std::optional<std::vector<double>> expected_of(const Case& c, const Contents& contents, std::size_t sequence,
                                               std::int64_t row, int head) {
  const std::int64_t width = HeadShape{c.num_heads, c.num_kv_heads, c.head_dim}.row_size(), dim = c.head_dim;
  const std::int32_t position = contents.positions[row], first = first_seen_from(c, position);
  const int kv_head = head / (c.num_heads / c.num_kv_heads);
  const auto at = [&](std::int32_t p) { return slot_of(c, contents.tables[sequence], p, kv_head); };
  std::vector<double> scores;
  for (std::int32_t p = first; p <= position; ++p) {
    double dot = 0;
    for (std::int64_t k = 0; k < dim; ++k)
      dot += double{contents.qkv[row * width + head * dim + k]} * contents.keys[at(p) + k];
    const double score = dot * scale_of(c);
    scores.push_back(c.cap > 0 ? c.cap * std::tanh(score / c.cap) : score);
  }
  const double sink = c.sinks ? sinks_of(c)[static_cast<std::size_t>(head)] : -std::numeric_limits<double>::infinity();
  const double top = std::max(sink, *std::ranges::max_element(scores));
  double total = std::exp(sink - top);
  std::vector<double> expected(dim, 0.0);
  for (std::int32_t p = first; p <= position; ++p) {
    const double weight = std::exp(scores[p - first] - top);
    total += weight;
    for (std::int64_t k = 0; k < dim; ++k) expected[k] += weight * contents.values[at(p) + k];
  }
  if (std::isnan(total)) return std::nullopt;
  for (double& value : expected) value /= total;
  return expected;
}

// Where a value that the row sees isn't finite, neither is what comes of it.
void expect_head(std::vector<float> actual, std::vector<double> expected, double tolerance) {
  for (std::size_t k = 0; k < expected.size(); ++k) {
    if (std::isfinite(expected[k])) continue;
    ASSERT_FALSE(std::isfinite(actual[k]));
    expected[k] = actual[k] = 0;
  }
  if (std::ranges::all_of(expected, [](double value) { return value == 0; })) return;
  ASSERT_LE(relative_error(actual, expected), tolerance);
}

void expect_attention(Device& device, const Case& c, const std::vector<Part>& parts, double tolerance,
                      const std::vector<Poison>& poisons = {}) {
  const HeadShape shape{c.num_heads, c.num_kv_heads, c.head_dim};
  const DType dtype = device.activation_dtype();
  Contents contents = make_contents(c, dtype, parts, poisons);
  const auto num_rows = std::ssize(contents.positions);
  const std::vector<std::int32_t> tokens(contents.positions.size(), 0);
  const DeviceMatrix data(device, dtype, num_rows, shape.row_size(), contents.qkv);
  const DeviceMatrix out(device, dtype, num_rows, c.num_heads * c.head_dim);
  const DeviceKvCache cache(device, c.kv_dtype, contents.num_pages, shape, c.page_size, contents.keys, contents.values);
  const DeviceMatrix sinks(device, DType::f32, 1, c.num_heads, sinks_of(c));
  const ScoreRule scores(scale_of(c), c.cap, c.sinks ? sinks.f32() : nullptr);
  contents.keys = cache.keys();
  contents.values = cache.values();
  device.begin_step({tokens, contents.positions, contents.sequences, {}, c.page_size}, {});
  for (int run = 0; run < 2; ++run) {  // the second finds what the first left of its scratch memory
    device.paged_attention(data.view(), shape, cache.layer(), scores, c.window, out.view());
  }

  const auto got = out.values();
  for (std::size_t s = 0; s < parts.size(); ++s) {
    for (std::int32_t i = 0; i < parts[s].rows; ++i) {
      const std::int64_t row = contents.sequences[s].first_row + i;
      for (int head = 0; head < c.num_heads; ++head) {
        const std::optional<std::vector<double>> expected = expected_of(c, contents, s, row, head);
        if (!expected) continue;
        const auto first = got.begin() + (row * c.num_heads + head) * c.head_dim;
        SCOPED_TRACE(testing::Message() << "sequence " << s << ", position " << contents.positions[row] << ", head "
                                        << head);
        ASSERT_NO_FATAL_FAILURE(expect_head({first, first + c.head_dim}, *expected, tolerance));
      }
    }
  }
}

TEST_P(DeviceAttention, AgreesWithItsDefinition) {
  const auto& [kind, shape] = GetParam();
  MINISGL_SKIP_WITHOUT_CACHE(kind, shape);
  Device& device = *device_of(kind);
  const double tolerance = tolerance_of(kind, shape);
  const std::int32_t page = shape.page_size;
  expect_attention(device, shape, {{0, 1}}, tolerance);
  expect_attention(device, shape, {{page - 1, 1}, {page, 1}, {page + 1, 1}, {0, 1}, {300, 1}}, tolerance);
  expect_attention(device, shape, {{0, 75}, {41, 33}, {page, 2}}, tolerance);
  expect_attention(device, shape, {{130, 1}, {0, page + 1}, {64, 1}, {100, 50}}, tolerance);
}

// 0 * NaN is NaN: a weight of 0 is not enough to keep out what a row does not see.
TEST_P(DeviceAttention, WhatComesLaterDoesNotReachEarlierRows) {
  const auto& [kind, shape] = GetParam();
  MINISGL_SKIP_WITHOUT_CACHE(kind, shape);
  const double tolerance = tolerance_of(kind, shape);
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const std::vector<Part> parts{{0, 75}, {41, 33}, {300, 1}};
  expect_attention(*device_of(kind), shape, parts, tolerance, {{0, 40, false, nan}, {1, 73, false, -infinity}});
  expect_attention(*device_of(kind), shape, parts, tolerance, {{0, 74, true, nan}, {1, 60, false, infinity}});
  expect_attention(*device_of(kind), shape, parts, tolerance, {{0, 0, false, infinity}, {0, 3, false, nan}});
}

TEST_P(DeviceAttention, LongPrefill) {
  const auto& [kind, shape] = GetParam();
  MINISGL_SKIP_WITHOUT_CACHE(kind, shape);
  if (shape.page_size == 1) GTEST_SKIP() << "the same code as with larger pages, and slow to prepare";
  const float nan = std::numeric_limits<float>::quiet_NaN();
  expect_attention(*device_of(kind), shape, {{500, 150}, {0, 300}}, tolerance_of(kind, shape),
                   {{0, 520, false, nan}, {1, 299, false, nan}});
}

// More tiles of queries than a GPU has processors, and of all lengths.
TEST_P(DeviceAttention, ManyPrefills) {
  const auto& [kind, shape] = GetParam();
  MINISGL_SKIP_WITHOUT_CACHE(kind, shape);
  if (shape.num_kv_heads < 4) GTEST_SKIP() << "the same code as with more, and slow to prepare";
  std::vector<Part> parts;
  for (int i = 0; i < 40; ++i) parts.push_back({i * 37 % 200, 1 + i * 53 % 40});
  parts.push_back({0, 300});
  expect_attention(*device_of(kind), shape, parts, tolerance_of(kind, shape));
}

// More than a launch of GPUs of compute capability 9.0 takes.
TEST_P(DeviceAttention, HundredsOfPrefills) {
  const auto& [kind, shape] = GetParam();
  MINISGL_SKIP_WITHOUT_CACHE(kind, shape);
  if (kind == DeviceKind::cpu || shape.page_size == 1) GTEST_SKIP() << "slow to prepare, and for GPUs alone";
  std::vector<Part> parts;
  for (std::int32_t i = 0; i < 300; ++i) parts.push_back({i % 7, 2});
  expect_attention(*device_of(kind), shape, parts, tolerance_of(kind, shape));
}

TEST_P(DeviceAttention, LongDecode) {
  const auto& [kind, shape] = GetParam();
  MINISGL_SKIP_WITHOUT_CACHE(kind, shape);
  if (shape.page_size == 1) GTEST_SKIP() << "the same code as with larger pages, and slow to prepare";
  expect_attention(*device_of(kind), shape, {{2500, 1}, {127, 1}, {128, 1}}, tolerance_of(kind, shape));
}

// Blocks of a GPU get pieces with several heads then, and some heads are cut.
TEST_P(DeviceAttention, ManyDecodes) {
  const auto& [kind, shape] = GetParam();
  MINISGL_SKIP_WITHOUT_CACHE(kind, shape);
  if (kind == DeviceKind::cpu || shape.page_size == 1) GTEST_SKIP() << "slow to prepare, and for GPUs alone";
  std::vector<Part> parts;
  for (std::int32_t i = 0; i < 36; ++i) parts.push_back({i * 397 % 500, 1});
  expect_attention(*device_of(kind), shape, parts, tolerance_of(kind, shape));
}

// More blocks than a GPU runs at once, of which some have a long sequence: over bytes its parts taper, or are even
// where it is longer still.
TEST_P(DeviceAttention, LongAmongManyDecodes) {
  const auto& [kind, shape] = GetParam();
  MINISGL_SKIP_WITHOUT_CACHE(kind, shape);
  if (kind == DeviceKind::cpu || shape.page_size == 1 || shape.num_kv_heads < 4)
    GTEST_SKIP() << "slow to prepare, and for GPUs alone";
  std::vector<Part> parts;
  for (std::int32_t i = 0; i < 160; ++i) parts.push_back({i % 5, 1});
  for (const std::int32_t cached : {700, 1000, 1541, 3500}) parts.push_back({cached, 1});
  expect_attention(*device_of(kind), shape, parts, tolerance_of(kind, shape));
}

}  // namespace
}  // namespace minisgl
