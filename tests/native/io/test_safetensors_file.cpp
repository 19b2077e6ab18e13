// The safetensors reader: what a truthful file gives, and what each lie is answered with.
#include <gtest/gtest.h>

#include <random>

#include "io/expect_input_error.h"
#include "io/gguf_builder.h"
#include "io/safetensors_file.h"

namespace minisgl {
namespace {

using testing::Bytes;
using testing::expect_input_error;

std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span<const char>(text.data(), text.size()));
}

std::string with_header(const std::string& header, std::size_t data_bytes = 16) {
  return Bytes().string(header).raw(std::string(data_bytes, 'x')).data();
}

std::string with_tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return with_header(R"({"w": {"dtype": )" + dtype + R"(, "shape": )" + shape + R"(, "data_offsets": )" + offsets +
                     "}}");
}

void expect_refused(const std::string& file, const std::string& message) {
  expect_input_error([&] { parse_safetensors(as_bytes(file), "m.safetensors"); }, message);
}

TEST(SafetensorsFile, ReadsTensors) {
  const std::string bytes = with_header(
      R"({"__metadata__": {"format": "pt"}, "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
          "b": {"dtype": "I8", "shape": [], "data_offsets": [12, 13]}})");
  const auto entries = parse_safetensors(as_bytes(bytes), "m.safetensors");
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries.at("a").shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(entries.at("a").bytes.size(), 12u);
  EXPECT_EQ(entries.at("b").dtype, "I8");
  EXPECT_EQ(entries.at("b").bytes.size(), 1u);
}

TEST(SafetensorsFile, RefusesWrongHeaderLengths) {
  expect_refused("", "needs 8 bytes, the file has 0 left");
  expect_refused(Bytes().put<std::uint64_t>(UINT64_MAX).raw("{}").data(), "the header at byte 8 needs");
  expect_refused(Bytes().put<std::uint64_t>(3).raw("{}").data(), "the header at byte 8 needs 3 bytes");
}

TEST(SafetensorsFile, RefusesBadJson) {
  expect_refused(with_header("{"), "the header of 'm.safetensors' is not valid JSON (at byte");
  expect_refused(with_header("[]"), "is not a JSON object");
  expect_refused(with_header(std::string(100000, '[')), "nests JSON deeper than 8 levels");
  expect_refused(with_header(R"({"a": 1e999})"), "not valid JSON");
  expect_refused(with_header("{\"a\xff\": 1}"), "not valid JSON");
  expect_refused(with_header(R"({"a": {}, "a": {}})"), "names 'a' twice");
}

TEST(SafetensorsFile, RefusesWrongEntries) {
  expect_refused(with_header(R"({"w": 3})"), "tensor 'w' is not described by a JSON object");
  expect_refused(with_header(R"({"w": {"dtype": "F32", "shape": [4]}})"), "tensor 'w' has no data_offsets");
  expect_refused(with_tensor("7", "[4]", "[0, 16]"), "a dtype that is not a string");
  expect_refused(with_tensor("\"F32\"", "4", "[0, 16]"), "has a shape that is not a list");
  expect_refused(with_tensor("\"F32\"", "[-4]", "[0, 16]"), "has a shape with something else than integers");
  expect_refused(with_tensor("\"F32\"", "[4.0]", "[0, 16]"), "has a shape with something else than integers");
  expect_refused(with_tensor("\"F32\"", "[18446744073709551615]", "[0, 16]"), "has a shape with something else");
  expect_refused(with_tensor("\"F32\"", "[4]", "[0]"), "data_offsets that are not two numbers");
  expect_refused(with_tensor("\"F32\"", "[4]", "[16, 0]"), "takes bytes 16 to 0 of 16");
  expect_refused(with_tensor("\"F32\"", "[4]", "[4, 20]"), "takes bytes 4 to 20 of 16 bytes of tensor data");
  expect_refused(with_tensor("\"F32\"", "[5]", "[0, 16]"),
                 "of dtype F32 and shape [5] can't take 16 bytes, it needs 20");
  expect_refused(with_tensor("\"F32\"", "[4294967296, 4294967296]", "[0, 16]"), "can't take 16 bytes");
  expect_refused(with_tensor("\"F32\"", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,4]", "[0, 16]"), "at most 16 numbers");
}

// Damaged files: the parser ends with a result or InputError, and a result never points outside the file.
TEST(SafetensorsFile, SurvivesRandomDamage) {
  const std::string original =
      with_header(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}})");
  std::mt19937 random(2);
  for (int round = 0; round < 20000; ++round) {
    std::string damaged = original;
    for (int change = 0, changes = 1 + static_cast<int>(random() % 3); change < changes; ++change) {
      const std::size_t place = random() % damaged.size();
      constexpr std::string_view likely = "0123456789[]{}\",:-e.\xff";
      if (random() % 8 == 0)
        damaged.resize(std::max<std::size_t>(place, 1));
      else
        damaged[place] = random() % 4 == 0 ? static_cast<char>(random()) : likely[random() % likely.size()];
    }
    try {
      for (const auto& [name, entry] : parse_safetensors(as_bytes(damaged), "m.safetensors")) {
        EXPECT_GE(entry.bytes.data(), as_bytes(damaged).data());
        EXPECT_LE(entry.bytes.data() + entry.bytes.size(), as_bytes(damaged).data() + damaged.size());
      }
    } catch (const InputError&) {
    }
  }
}

}  // namespace
}  // namespace minisgl
