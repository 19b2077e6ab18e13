// XXH64 against what the reference program says.
#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "core/xxh64.h"

namespace minisgl {
namespace {

std::uint64_t hash(std::string_view text, std::uint64_t seed = 0) {
  return xxh64(std::as_bytes(std::span(text)), seed);
}

TEST(Xxh64, IsWhatOthersCompute) {
  EXPECT_EQ(hash(""), 0xef46db3751d8e999u);
  EXPECT_EQ(hash("", 1), 0xd5afba1336a3be4bu);
  EXPECT_EQ(hash("a"), 0xd24ec4f1a98c6e5bu);
  EXPECT_EQ(hash("abc"), 0x44bc2cf5ad770999u);
  EXPECT_EQ(hash("Nobody inspects the spammish repetition"), 0xfbcea83c8a378bf1u);  // more than a stripe
}

}  // namespace
}  // namespace minisgl
