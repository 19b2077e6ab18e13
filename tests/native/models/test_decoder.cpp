// The decoder over mixed batches: a sequence's logits are the same bits whatever shares its step.
#include <gtest/gtest.h>

#include "io/expect_input_error.h"
#include "kernels/cpu/backend.h"
#include "models/decoder.h"
#include "models/memory_source.h"
#include "models/registry.h"
#include "models/stepper.h"
#include "models/weight_loader.h"

namespace minisgl {
namespace {

using testing::expect_input_error;
using testing::load;
using testing::MemorySource;
using testing::Stepper;
using testing::tiny_llama;

const std::vector<std::int32_t> prompt{3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 3};

TEST(Decoder, AnyCutAndAnyCompanyGiveTheSameBits) {
  const auto device = make_cpu_device(2);
  const auto model = load(tiny_llama(), *device);
  const std::vector<std::int32_t> pages{0, 1, 2}, other_pages{5, 3, 4};

  Stepper alone(*device, *model, 3);
  const std::vector<float> expected = alone.step({{prompt, 0, &pages}});
  ASSERT_EQ(std::ssize(expected), 50);

  Stepper mixed(*device, *model, 6);
  const std::vector<std::int32_t> first(prompt.begin(), prompt.begin() + 7),
      second(prompt.begin() + 7, prompt.end() - 1);
  EXPECT_TRUE(mixed.step({{{1, 2, 3, 4, 5}, 0, &other_pages}, {first, 0, &pages}}, false).empty());
  mixed.step({{second, 7, &pages}, {{6}, 5, &other_pages}});
  const std::vector<float> both = mixed.step({{{7, 8}, 6, &other_pages}, {{prompt.back()}, 11, &pages}});
  EXPECT_EQ(std::vector<float>(both.begin() + 50, both.end()), expected);
}

TEST(Decoder, ARehearsalWritesToItsOwnPagesOnly) {
  const auto device = make_cpu_device(2);
  const auto model = load(tiny_llama(), *device);
  KvCache cache(*device, model->spec(), DType::f32, 3, 4);
  const std::vector<std::int32_t> positions{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, pages{2, 0, 1}, unused{1, 1, 1};
  const auto batch_of = [&](const std::vector<std::int32_t>& table, std::size_t begin, std::size_t end) {
    struct Rows {
      ops::SequenceRows rows;
      std::span<const std::int32_t> tokens, positions;
    };
    return Rows{{0, static_cast<std::int32_t>(end - begin), static_cast<std::int32_t>(begin), table.data()},
                std::span(prompt).subspan(begin, end - begin),
                std::span(positions).subspan(begin, end - begin)};
  };
  const auto begun = batch_of(pages, 0, 8), ended = batch_of(pages, 8, 12), rehearsed = batch_of(unused, 0, 12);
  const std::vector<std::int32_t> last_row{3};
  std::vector<std::vector<float>> logits;
  for (const bool rehearses : {false, true}) {
    const StepBatch first{begun.tokens, begun.positions, {&begun.rows, 1}, {}, 4};
    device->begin_step(first, {});
    model->forward(first, cache);
    if (rehearses) {
      const StepBatch between{rehearsed.tokens, rehearsed.positions, {&rehearsed.rows, 1}, {}, 4};
      device->begin_step(between, {});
      model->rehearse(between, cache);
    }
    const StepBatch second{ended.tokens, ended.positions, {&ended.rows, 1}, last_row, 4};
    device->begin_step(second, {});
    const Tensor row = model->forward(second, cache);
    logits.emplace_back(row.f32(), row.f32() + row.cols);
  }
  EXPECT_EQ(logits[0], logits[1]);
}

// What the host gets of a row is what the head reads of it.
TEST(Decoder, HiddenStatesTimesTheHeadAreTheLogits) {
  const auto device = make_cpu_device(2);
  MemorySource source = tiny_llama();
  const std::vector<float> head = source.data("model.embed_tokens.weight");  // loading gives the source's pages back
  const auto model = load(source, *device);
  KvCache cache(*device, model->spec(), DType::f32, 3, 4);
  const std::vector<std::int32_t> positions{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, pages{2, 0, 1};
  const ops::SequenceRows rows{0, 12, 0, pages.data()};
  const std::vector<std::int32_t> all = positions, some{1, 4, 11};
  const auto forward = [&](std::span<const std::int32_t> logit_rows, std::span<const std::int32_t> hidden_rows) {
    const StepBatch batch{prompt, positions, {&rows, 1}, logit_rows, 4, hidden_rows};
    device->begin_step(batch, {});
    const Tensor logits = model->forward(batch, cache);
    return std::vector<float>(logits.rows > 0 ? logits.f32() : nullptr,
                              logits.rows > 0 ? logits.f32() + logits.rows * logits.cols : nullptr);
  };
  const std::vector<float> expected = forward(all, {});
  EXPECT_TRUE(device->take_outputs().hidden.empty());
  EXPECT_EQ(forward(all, all), expected);  // the logits are the same bits
  const std::vector<float> hidden = device->take_outputs().hidden;
  ASSERT_EQ(hidden.size(), 12u * 32);
  for (std::size_t row = 0; row < 12; ++row) {
    for (std::size_t token = 0; token < 50; ++token) {
      double sum = 0;
      for (std::size_t i = 0; i < 32; ++i) sum += double{hidden[row * 32 + i]} * head[token * 32 + i];
      EXPECT_NEAR(sum, expected[row * 50 + token], 1e-5) << "row " << row << ", token " << token;
    }
  }
  // Without logits, and of some rows only.
  EXPECT_TRUE(forward({}, some).empty());
  const std::vector<float> kept = device->take_outputs().hidden;
  ASSERT_EQ(kept.size(), 3u * 32);
  for (std::size_t i = 0; i < 3; ++i) {
    const auto row = hidden.begin() + some[i] * 32;
    EXPECT_EQ(std::vector(kept.begin() + static_cast<long>(i) * 32, kept.begin() + static_cast<long>(i + 1) * 32),
              std::vector(row, row + 32));
  }
}

TEST(Decoder, WorkspaceShrinksAndGrowsWithoutHarm) {
  const auto device = make_cpu_device(1);
  const auto model = load(tiny_llama(), *device);
  const std::vector<std::int32_t> pages{0, 1, 2};
  Stepper stepper(*device, *model, 3);
  const std::vector<float> expected = stepper.step({{prompt, 0, &pages}});
  stepper.step({{{1}, 0, &pages}});
  EXPECT_EQ(stepper.step({{prompt, 0, &pages}}), expected);
}

TEST(Decoder, RefusesBrokenBatches) {
  const auto device = make_cpu_device(1);
  const auto model = load(tiny_llama(), *device);
  const std::vector<std::int32_t> pages{0, 1, 2};
  Stepper stepper(*device, *model, 3);
  EXPECT_THROW(stepper.step({{{50}, 0, &pages}}), CheckError);
  EXPECT_THROW(stepper.step({{{-1}, 0, &pages}}), CheckError);
  EXPECT_THROW(stepper.step({}), CheckError);
}

TEST(Decoder, CountsTheBytesOfAStep) {
  const auto device = make_cpu_device(1);
  const auto model = load(tiny_llama(), *device);
  const std::int64_t layer = 32 * 32 * 2 + 16 * 32 * 2 + 40 * 32 * 3 + 32 * 2;
  const std::int64_t least = 4 * (50 * 32 + 32 + 2 * layer);
  EXPECT_GE(model->weight_bytes(), least);
  EXPECT_LE(model->weight_bytes(), least * 3 / 2);  // rows are padded to the kernels' tiles
  EXPECT_EQ(model->weight_dtype(), DType::f32);
}

TEST(Decoder, InterleavedRowsAreReordered) {
  const auto device = make_cpu_device(1);
  MemorySource halves = tiny_llama();
  MemorySource interleaved = tiny_llama();
  interleaved.interleaved = true;
  for (const std::string layer : {"0", "1"}) {
    for (const char* part : {"q", "k"}) {
      const std::string name = "model.layers." + layer + ".self_attn." + part + "_proj.weight";
      const std::vector<float> source = halves.data(name);
      std::vector<float>& target = interleaved.data(name);
      const std::int64_t num_rows = std::ssize(source) / 32;
      for (std::int64_t row = 0; row < num_rows; ++row) {  // heads of 8 rows
        const std::int64_t in_head = row % 8;
        const std::int64_t place = row - in_head + (in_head < 4 ? 2 * in_head : 2 * (in_head - 4) + 1);
        std::copy_n(source.begin() + row * 32, 32, target.begin() + place * 32);
      }
    }
  }
  const std::vector<std::int32_t> pages{0, 1, 2};
  const auto expected = load(halves, *device);
  const auto actual = load(interleaved, *device);
  EXPECT_EQ(Stepper(*device, *actual, 3).step({{prompt, 0, &pages}}),
            Stepper(*device, *expected, 3).step({{prompt, 0, &pages}}));
}

TEST(WeightLoader, CheckFindsFaultsWithoutLoading) {
  const auto device = make_cpu_device(1);
  MemorySource source = tiny_llama();
  std::int64_t bytes = 0;
  const auto check = [&] {
    WeightLoader loader(source, *device, WeightLoader::Pass::check, Quantize::none,
                        [&](std::int64_t count) { bytes += count; });
    return load_decoder_weights(read_model_spec(source), loader);
  };
  EXPECT_EQ(check().embedding, nullptr);
  EXPECT_GT(bytes, 0);
  source.add("model.layers.1.mlp.down_proj.weight", {40, 32});
  expect_input_error(check,
                     "'model.layers.1.mlp.down_proj.weight' has shape [40, 32], the configuration asks for [32, 40]");
  source.remove("model.layers.0.mlp.up_proj.weight");
  expect_input_error(check, "'memory' has no tensor 'model.layers.0.mlp.up_proj.weight'");
}

TEST(KvCache, LayersDoNotOverlap) {
  const ModelSpec spec = read_model_spec(tiny_llama());
  const auto device = make_cpu_device(1);
  const KvCache cache(*device, spec, DType::f16, 5, 4);
  const std::int64_t plane = 5 * 2 * 4 * 8 * 2;  // pages, heads, tokens, head size, bytes
  EXPECT_EQ(cache.layer(0).values - cache.layer(0).keys, plane);
  EXPECT_EQ(cache.layer(1).keys - cache.layer(0).values, plane);
  EXPECT_EQ(KvCache::bytes_per_page(spec, DType::f16, 4) * 5, 4 * plane);
  EXPECT_THROW(cache.layer(2), CheckError);
}

TEST(KvCache, ScalesLieBehindTheData) {
  const ModelSpec spec = read_model_spec(tiny_llama());
  const auto device = make_cpu_device(1);
  for (const DType dtype : {DType::i8, DType::f8e4m3}) {
    const KvCache cache(*device, spec, dtype, 5, 4);
    const std::int64_t plane = 5 * 2 * 4 * 8, scales = 5 * 2 * 4;  // pages, heads, tokens, head size
    const ops::KvLayer first = cache.layer(0), second = cache.layer(1);
    EXPECT_EQ(second.keys - first.keys, 2 * plane);
    EXPECT_EQ(reinterpret_cast<std::byte*>(first.key_scales) - second.values, plane);
    EXPECT_EQ(first.value_scales - first.key_scales, scales);
    EXPECT_EQ(second.key_scales - first.value_scales, scales);
    EXPECT_EQ(second.value_scales - first.key_scales, 3 * scales);
    EXPECT_EQ(KvCache::bytes_per_page(spec, dtype, 4) * 5, 4 * (plane + scales * std::int64_t{sizeof(float)}));
  }
  EXPECT_EQ(KvCache(*device, spec, DType::bf16, 5, 4).layer(1).key_scales, nullptr);
}

TEST(KvCache, CopiesAllOfAPage) {
  const ModelSpec spec = read_model_spec(tiny_llama());
  const auto device = make_cpu_device(1);
  for (const DType dtype : kv_dtypes) {
    KvCache cache(*device, spec, dtype, 5, 4);
    const std::int64_t page_bytes = row_bytes(dtype, 2 * 4 * 8), page_scales = has_kv_scales(dtype) ? 2 * 4 : 0;
    for (std::int64_t index = 0; index < 2; ++index) {
      const ops::KvLayer layer = cache.layer(index);
      for (std::byte* plane : {layer.keys, layer.values}) std::memset(plane + 3 * page_bytes, 7, page_bytes);
      for (float* plane : {layer.key_scales, layer.value_scales})
        std::fill_n(plane + 3 * page_scales, page_scales, 0.5f);
    }
    cache.copy_page(*device, 3, 1);
    for (std::int64_t index = 0; index < 2; ++index) {
      const ops::KvLayer layer = cache.layer(index);
      for (const std::byte* plane : {layer.keys, layer.values}) {
        for (std::int64_t i = 0; i < 5 * page_bytes; ++i)
          ASSERT_EQ(plane[i] == std::byte{7}, i / page_bytes == 1 || i / page_bytes == 3);
      }
      for (const float* plane : {layer.key_scales, layer.value_scales}) {
        for (std::int64_t i = 0; i < 5 * page_scales; ++i)
          ASSERT_EQ(plane[i] == 0.5f, i / page_scales == 1 || i / page_scales == 3);
      }
    }
  }
}

TEST(Registry, ReadsStopTokensOnce) {
  EXPECT_EQ(read_model_spec(tiny_llama()).eos_token_ids, (std::vector<std::int32_t>{1, 2}));
}

}  // namespace
}  // namespace minisgl
