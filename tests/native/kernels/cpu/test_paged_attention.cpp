// Attention over pages: against its definition, and bit for bit whatever is computed beside it.
#include <gtest/gtest.h>

#include <limits>

#include "core/cpu_features.h"
#include "core/error.h"
#include "kernels/cpu/kv_sequences.h"

namespace minisgl {
namespace {

std::vector<AttentionShape> shapes() {
  return {
      {.num_heads = 9, .num_kv_heads = 3, .head_dim = 64, .page_size = 16, .dtype = DType::f16},
      {.num_heads = 4, .num_kv_heads = 4, .head_dim = 128, .page_size = 32, .dtype = DType::bf16},
      {.num_heads = 14, .num_kv_heads = 2, .head_dim = 64, .page_size = 8, .dtype = DType::f32},
      {.num_heads = 5, .num_kv_heads = 1, .head_dim = 80, .page_size = 5, .dtype = DType::f16, .window = 50},
      {.num_heads = 2, .num_kv_heads = 1, .head_dim = 8, .page_size = 1, .dtype = DType::f32, .window = 1},
      {.num_heads = 3, .num_kv_heads = 1, .head_dim = 256, .page_size = 256, .dtype = DType::bf16, .window = 300},
      {.num_heads = 50, .num_kv_heads = 1, .head_dim = 24, .page_size = 64, .dtype = DType::f32, .window = 33},
      {.num_heads = 9, .num_kv_heads = 3, .head_dim = 64, .page_size = 16, .dtype = DType::i8},
      {.num_heads = 5, .num_kv_heads = 1, .head_dim = 80, .page_size = 5, .dtype = DType::i8, .window = 50},
      {.num_heads = 2, .num_kv_heads = 1, .head_dim = 8, .page_size = 1, .dtype = DType::i8, .window = 1},
      {.num_heads = 8, .num_kv_heads = 2, .head_dim = 256, .page_size = 64, .dtype = DType::i8, .window = 300},
  };
}

std::string isa_and_shape_name(const testing::TestParamInfo<std::tuple<CpuIsa, AttentionShape>>& info) {
  return std::string(cpu_isa_label(std::get<0>(info.param))) + "_" + std::get<1>(info.param).name();
}

class PagedAttention : public testing::TestWithParam<std::tuple<CpuIsa, AttentionShape>> {
 protected:
  const CpuKernels& kernels = cpu_kernels(std::get<0>(GetParam()));
  const AttentionShape& shape = std::get<1>(GetParam());
  ThreadPool one{1}, three{3};
};

INSTANTIATE_TEST_SUITE_P(All, PagedAttention,
                         testing::Combine(testing::ValuesIn(supported_base_isas().begin(), supported_base_isas().end()),
                                          testing::ValuesIn(shapes())),
                         isa_and_shape_name);

TEST_P(PagedAttention, AgreesWithItsDefinition) {
  const std::int32_t length = 600;
  const double tolerance = shape.dtype == DType::i8 ? 4e-5 : 2e-6;  // queries are rounded to 16 bits
  KvSequences sequences(shape, {length});
  sequences.run_all(kernels, one, 0, 350);
  for (const std::int32_t position : {0, 1, 7, 31, 32, 63, 255, 256, 349, 350, 512, 599}) {
    for (int head = 0; head < shape.num_heads; ++head) {
      const auto expected = sequences.reference(0, position, head);
      const float* got = &sequences.out(0)[position * sequences.out_stride() + head * shape.head_dim];
      for (int i = 0; i < shape.head_dim; ++i)
        ASSERT_NEAR(got[i], expected[i], tolerance * (1 + std::abs(expected[i])))
            << "position " << position << ", head " << head << ", element " << i;
    }
  }
}

TEST_P(PagedAttention, GivesTheSameBitsForAnyChunking) {
  const std::int32_t length = 290;
  KvSequences whole(shape, {length});
  whole.run_all(kernels, one, 0, length);
  for (const std::int32_t chunk : {1, 7, 33, 270}) {
    KvSequences chunked(shape, {length});
    chunked.run_all(kernels, one, 0, chunk);
    EXPECT_EQ(chunked.out(0), whole.out(0)) << "chunks of " << chunk;
  }
}

TEST_P(PagedAttention, GivesTheSameBitsForAnyNumberOfThreads) {
  const std::int32_t length = 325;
  KvSequences single(shape, {length}), threaded(shape, {length});
  for (KvSequences* sequences : {&single, &threaded}) {
    ThreadPool& pool = sequences == &single ? one : three;
    sequences->run(kernels, pool, {{0, 300}});
    sequences->run(kernels, pool, {{0, 20}});
    for (int i = 0; i < 5; ++i) sequences->run(kernels, pool, {{0, 1}});  // long enough to be split into ranges
  }
  EXPECT_EQ(threaded.out(0), single.out(0));
}

TEST_P(PagedAttention, GivesTheSameBitsBesideStrangers) {
  const std::vector<std::int32_t> lengths = {300, 77, 290};
  KvSequences alone(shape, lengths), together(shape, lengths);
  for (int i = 0; i < 3; ++i) alone.run_all(kernels, one, i, lengths[i]);
  together.run(kernels, three, {{2, 280}, {0, 10}});
  together.run(kernels, three, {{1, 30}, {2, 1}, {0, 289}});
  for (int i = 0; i < 9; ++i) together.run(kernels, three, {{2, 1}, {1, 5}});
  together.run(kernels, three, {{0, 1}, {1, 2}});
  for (int i = 0; i < 3; ++i) EXPECT_EQ(together.out(i), alone.out(i)) << "sequence " << i;
}

TEST_P(PagedAttention, RowsDoNotSeeLaterRowsOfTheirChunk) {
  const std::int32_t length = 100, poisoned = 70;
  KvSequences clean(shape, {length}), poisoned_late(shape, {length});
  auto& qkv = poisoned_late.qkv(0);
  std::fill(qkv.begin() + poisoned * clean.stride(), qkv.end(), std::numeric_limits<float>::quiet_NaN());
  clean.run_all(kernels, one, 0, length);
  poisoned_late.run_all(kernels, one, 0, length);
  const auto rows_before = [&](const KvSequences& sequences) {
    return std::vector<float>(sequences.out(0).begin(), sequences.out(0).begin() + poisoned * clean.out_stride());
  };
  EXPECT_EQ(rows_before(poisoned_late), rows_before(clean));
}

TEST_P(PagedAttention, WhatLiesBeforeTheWindowHasNoInfluence) {
  if (shape.window == 0) GTEST_SKIP() << "full attention";
  const std::int32_t length = 400;
  KvSequences clean(shape, {length}), poisoned(shape, {length});
  for (KvSequences* sequences : {&clean, &poisoned}) {
    sequences->run(kernels, one, {{0, length - 2}});
    if (sequences == &poisoned)
      for (std::int32_t position = 0; position <= length - 2 - shape.window; ++position) sequences->poison(0, position);
    sequences->run(kernels, one, {{0, 2}});
  }
  EXPECT_EQ(poisoned.out(0), clean.out(0));
}

class StoreKv : public testing::TestWithParam<DType> {};

INSTANTIATE_TEST_SUITE_P(All, StoreKv, testing::Values(DType::f32, DType::f16, DType::bf16, DType::i8),
                         [](const auto& info) { return std::string(dtype_info(info.param).name); });

TEST_P(StoreKv, PutsEveryHeadInItsSlotAndTouchesNoOther) {
  const AttentionShape shape = {.num_heads = 4, .num_kv_heads = 2, .head_dim = 24, .page_size = 8, .dtype = GetParam()};
  KvSequences sequences(shape, {21, 5});
  ThreadPool pool(2);
  sequences.run(cpu_kernels(), pool, {{0, 13}, {1, 5}});
  sequences.run(cpu_kernels(), pool, {{0, 8}});
  const ops::KvLayer cache = sequences.cache();
  // What is read back of a head; NaN where nothing was written.
  const auto read = [&](const std::byte* plane, const float* scales, std::int64_t slot) {
    const std::byte* head = plane + slot * row_bytes(shape.dtype, shape.head_dim);
    std::vector<float> values(shape.head_dim);
    for (int i = 0; i < shape.head_dim; ++i) {
      std::uint16_t half = 0;
      if (shape.dtype == DType::f16 || shape.dtype == DType::bf16) std::memcpy(&half, head + 2 * i, sizeof(half));
      if (shape.dtype == DType::f32) std::memcpy(&values[i], head + 4 * i, 4);
      if (shape.dtype == DType::f16) values[i] = f16_to_f32(half);
      if (shape.dtype == DType::bf16) values[i] = bf16_to_f32(half);
      if (scales != nullptr) values[i] = byte_value(shape.dtype, static_cast<std::uint8_t>(head[i])) * scales[slot];
    }
    return values;
  };
  std::int64_t num_checked = 0;
  for (const auto& [sequence, length] : {std::pair{0, 21}, std::pair{1, 5}})
    for (int position = 0; position < length; ++position)
      for (int head = 0; head < shape.num_kv_heads; ++head, ++num_checked) {
        const std::int64_t slot = sequences.offset(sequence, position, head) / row_bytes(shape.dtype, shape.head_dim);
        const float* key =
            &sequences.qkv(sequence)[position * sequences.stride()] + (shape.num_heads + head) * shape.head_dim;
        const float* value = key + shape.num_kv_heads * shape.head_dim;
        ASSERT_EQ(read(cache.keys, cache.key_scales, slot), as_cached(shape.dtype, key, shape.head_dim));
        ASSERT_EQ(read(cache.values, cache.value_scales, slot), as_cached(shape.dtype, value, shape.head_dim));
      }
  std::int64_t num_written = 0;
  const std::int64_t num_slots = (3 + 1 + 2) * shape.num_kv_heads * shape.page_size;
  for (std::int64_t slot = 0; slot < num_slots; ++slot)
    num_written += !std::isnan(read(cache.keys, cache.key_scales, slot).front());
  EXPECT_EQ(num_written, num_checked);
}

TEST(PagedAttentionShapes, RefusesWhatItCannotCompute) {
  ThreadPool pool(1);
  for (const int head_dim : {12, 264}) {
    KvSequences sequences({.num_heads = 2, .num_kv_heads = 1, .head_dim = head_dim}, {4});
    EXPECT_THROW(sequences.run(cpu_kernels(), pool, {{0, 4}}), CheckError);
  }
  KvSequences uneven({.num_heads = 3, .num_kv_heads = 2, .head_dim = 16}, {4});
  EXPECT_THROW(uneven.run(cpu_kernels(), pool, {{0, 4}}), CheckError);
}

}  // namespace
}  // namespace minisgl
