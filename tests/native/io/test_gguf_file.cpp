// The GGUF reader: what a truthful file gives, and what each lie is answered with.
#include <gtest/gtest.h>

#include <random>

#include "io/expect_input_error.h"
#include "io/gguf_builder.h"
#include "io/gguf_file.h"

namespace minisgl {
namespace {

using testing::expect_input_error;
using testing::gguf_array;
using testing::gguf_string;
using testing::gguf_u32;
using testing::GgufBuilder;
using testing::small_gguf;

std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span<const char>(text.data(), text.size()));
}

void expect_refused(const std::string& file, const std::string& message) {
  expect_input_error([&] { parse_gguf(as_bytes(file), "m.gguf"); }, message);
}

TEST(GgufFile, ReadsMetadataAndTensors) {
  const std::string bytes = small_gguf().build();
  const GgufFile file = parse_gguf(as_bytes(bytes), "m.gguf");
  EXPECT_EQ(file.metadata.at("general.architecture"), "llama");
  EXPECT_EQ(file.metadata.at("llama.block_count"), 1);
  EXPECT_EQ(file.metadata.at("llama.rope.freq_base"), 5000.0);
  EXPECT_EQ(file.metadata.at("llama.numbers"), (nlohmann::json{7, 8}));
  EXPECT_TRUE(file.metadata.at("tokenizer.ggml.tokens").is_null());
  const TensorData& tensor = file.tensors.at("blk.0.attn_q.weight");
  EXPECT_EQ(tensor.dtype, DType::q8_0);
  EXPECT_EQ(tensor.shape, (std::vector<std::int64_t>{2, 32}));
  EXPECT_EQ(tensor.bytes.size(), 68u);
  EXPECT_EQ(tensor.bytes.data() + tensor.bytes.size(), as_bytes(bytes).data() + bytes.size());
}

TEST(GgufFile, EveryTruncationIsAnError) {
  const std::string bytes = small_gguf().build();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THROW(parse_gguf(as_bytes(bytes.substr(0, size)), "m.gguf"), InputError) << size;
  }
}

TEST(GgufFile, RefusesOtherFilesAndVersions) {
  expect_refused("PK\x03\x04 something", "'m.gguf' is not a GGUF file");
  GgufBuilder builder = small_gguf();
  builder.version = 1;
  expect_refused(builder.build(), "GGUF version 1; versions 2 and 3 are supported");
  builder.version = 0x03000000;
  expect_refused(builder.build(), "big-endian");
}

TEST(GgufFile, CountsBeyondTheFileEndIt) {
  const GgufBuilder builder = small_gguf();
  expect_refused(builder.build(UINT64_MAX, builder.num_metadata), "'m.gguf'");
  expect_refused(builder.build(2, UINT64_MAX), "'m.gguf'");
}

TEST(GgufFile, LengthsBeyondTheFileAreRefused) {
  GgufBuilder text;
  text.key("k", gguf_string).put<std::uint64_t>(UINT64_MAX);
  expect_refused(text.build(), "metadata 'k' at byte 45 needs 18446744073709551615 bytes");
  GgufBuilder numbers;
  numbers.key("k", gguf_array).put(gguf_u32).put<std::uint64_t>(UINT64_MAX / 2);
  expect_refused(numbers.build(), "metadata 'k' claims 9223372036854775807 elements");
  GgufBuilder strings;
  strings.key("k", gguf_array).put(gguf_string).put<std::uint64_t>(UINT64_MAX);
  expect_refused(strings.build(), "truncated or damaged");
}

TEST(GgufFile, RefusesNestedArraysAndUnknownTypes) {
  GgufBuilder nested;
  nested.key("k", gguf_array).put(gguf_array).put<std::uint64_t>(1);
  expect_refused(nested.build(), "metadata 'k' is an array of arrays");
  GgufBuilder unknown;
  unknown.key("k", 77);
  expect_refused(unknown.build(), "metadata 'k' has the unknown type 77");
}

TEST(GgufFile, RefusesDuplicates) {
  GgufBuilder metadata = small_gguf();
  metadata.add_u32("llama.block_count", 2);
  expect_refused(metadata.build(), "metadata key 'llama.block_count' twice");
  GgufBuilder tensors = small_gguf();
  tensors.tensors.push_back(tensors.tensors.front());
  expect_refused(tensors.build(), "tensor 'token_embd.weight' twice");
}

TEST(GgufFile, RefusesImpossibleTensors) {
  const auto with = [](auto change) {
    GgufBuilder builder = small_gguf();
    change(builder.tensors[1]);
    return builder.build();
  };
  using testing::GgufTensor;
  expect_refused(with([](GgufTensor& t) { t.dims = {32, 0}; }), "tensor 'blk.0.attn_q.weight' has a dimension of 0");
  expect_refused(with([](GgufTensor& t) { t.dims = {}; }), "has 0 dimensions");
  expect_refused(with([](GgufTensor& t) { t.dims = {1, 1, 1, 1, 1}; }), "has 5 dimensions");
  expect_refused(with([](GgufTensor& t) { t.dims = {32, UINT64_MAX}; }), "dimension of 18446744073709551615");
  expect_refused(with([](GgufTensor& t) { t.dims = {1ull << 40, 1ull << 40, 1ull << 40}; }), "impossible shape");
  expect_refused(with([](GgufTensor& t) { t.dims = {33, 2}; }), "type q8_0 has the impossible shape [2, 33]");
  expect_refused(with([](GgufTensor& t) { t.dims = {32, 3}; }), "needs 102 bytes at offset 96 of 164 bytes");
  expect_refused(with([](GgufTensor& t) { t.offset = 97; }), "offset 97, which is not a multiple of the alignment 32");
  expect_refused(with([](GgufTensor& t) { t.offset = UINT64_MAX - 31; }), "truncated or damaged: tensor");
  expect_refused(with([](GgufTensor& t) { t.type = 16; }),
                 "has type IQ2_XXS, which is not supported; supported: F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, "
                 "Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, BF16, MXFP4");
  expect_refused(with([](GgufTensor& t) { t.type = 4; }), "has type number 4");
  expect_refused(with([](GgufTensor& t) { t.name = ""; }), "name of tensor 1 is empty");
}

TEST(GgufFile, RefusesOddAlignments) {
  for (const std::uint32_t alignment : {0u, 1u, 24u, 1u << 31}) {
    GgufBuilder builder = small_gguf();
    builder.add_u32("general.alignment", alignment);
    expect_refused(builder.build(), "general.alignment must be a power of two");
  }
  GgufBuilder text = small_gguf();
  text.add_string("general.alignment", "32");
  expect_refused(text.build(), "general.alignment must be a power of two");
}

TEST(GgufFile, NamesInMessagesArePrintable) {
  GgufBuilder builder = small_gguf();
  builder.tensors[0].name = "evil\n\x1b[31m" + std::string(500, 'a');
  builder.tensors[0].type = 99;
  expect_refused(builder.build(), "'evil??[31maaa");
}

// Damaged files: the parser ends with a result or InputError, and a result never points outside the file.
TEST(GgufFile, SurvivesRandomDamage) {
  const std::string original = small_gguf().build();
  std::mt19937 random(1);
  for (int round = 0; round < 20000; ++round) {
    std::string damaged = original;
    for (int change = 0, changes = 1 + static_cast<int>(random() % 4); change < changes; ++change) {
      const std::size_t place = random() % damaged.size();
      switch (random() % 4) {
        case 0: damaged[place] = static_cast<char>(random()); break;
        case 1: damaged[place] = static_cast<char>(0xff); break;
        case 2: damaged.insert(place, std::string(1 + random() % 8, '\0')); break;
        default: damaged.resize(std::max<std::size_t>(place, 1)); break;
      }
    }
    try {
      const GgufFile file = parse_gguf(as_bytes(damaged), "m.gguf");
      for (const auto& [name, tensor] : file.tensors) {
        EXPECT_GE(tensor.bytes.data(), as_bytes(damaged).data());
        EXPECT_LE(tensor.bytes.data() + tensor.bytes.size(), as_bytes(damaged).data() + damaged.size());
      }
    } catch (const InputError&) {
    }
  }
}

}  // namespace
}  // namespace minisgl
