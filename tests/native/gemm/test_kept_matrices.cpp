// Packed matrices that outlive a process: what comes back is what was put, and a file that isn't whole is none.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gemm/kept_matrices.h"
#include "io/temporary_folder.h"

namespace minisgl {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kRows = 24, kCols = 512, kMost = std::int64_t{1} << 30;

PackedMatrix some_matrix(DType dtype, std::uint8_t first, ThreadPool& pool) {
  std::vector<std::byte> raw(static_cast<std::size_t>(kRows * row_bytes(dtype, kCols)));
  for (std::size_t i = 0; i < raw.size(); ++i) raw[i] = static_cast<std::byte>((first + i * 7) & 0x3f);
  return PackedMatrix::pack(dtype, kRows, kCols, raw, pool);
}

class Kept : public ::testing::Test {
 protected:
  KeepRequest request(const std::string& of, std::int64_t bytes = 1000) const {
    return {folder_.path() + "/packed", of, bytes, kMost};
  }
  // Puts a matrix of each format, and waits until the file has its name.
  void keep(const std::string& of) {
    KeptMatrices kept(request(of));
    EXPECT_FALSE(kept.is_reading());
    for (int i = 0; i <= static_cast<int>(DType::mxfp4); ++i) {
      PackedMatrix matrix = some_matrix(static_cast<DType>(i), static_cast<std::uint8_t>(i), pool_);
      const std::vector<std::byte> before(matrix.data(), matrix.data() + matrix.nbytes());
      kept.put("a tensor " + std::to_string(i), matrix);
      ASSERT_EQ(matrix.nbytes(), before.size());
      EXPECT_EQ(std::memcmp(matrix.data(), before.data(), before.size()), 0);  // it lies in the file now
    }
    kept.finish();
  }
  std::vector<fs::path> files() const {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(folder_.path() + "/packed")) found.push_back(entry.path());
    return found;
  }

  testing::TemporaryFolder folder_;
  ThreadPool pool_{2};
};

TEST_F(Kept, MatricesComeBackAsTheyWere) {
  keep("model");
  KeptMatrices kept(request("model"));
  ASSERT_TRUE(kept.is_reading());
  for (int i = static_cast<int>(DType::mxfp4); i >= 0; --i) {
    const auto dtype = static_cast<DType>(i);
    const auto found = kept.take("a tensor " + std::to_string(i), kRows, kCols);
    ASSERT_TRUE(found);
    const PackedMatrix made = some_matrix(dtype, static_cast<std::uint8_t>(i), pool_);
    EXPECT_EQ(found->dtype(), dtype);
    ASSERT_EQ(found->nbytes(), made.nbytes());
    EXPECT_EQ(std::memcmp(found->data(), made.data(), made.nbytes()), 0);
  }
  EXPECT_FALSE(kept.take("another tensor", kRows, kCols));
  EXPECT_FALSE(kept.take("a tensor 0", kRows + 1, kCols));
}

TEST_F(Kept, OtherFilesHaveOtherMatrices) {
  keep("model");
  EXPECT_FALSE(KeptMatrices(request("model, changed")).is_reading());
  EXPECT_TRUE(KeptMatrices(request("model")).is_reading());
}

TEST_F(Kept, NothingIsLeftOfAStartThatDidNotEnd) {
  {
    KeptMatrices kept(request("model"));
    PackedMatrix matrix = some_matrix(DType::q4_0, 1, pool_);
    kept.put("a tensor", matrix);
  }
  EXPECT_TRUE(files().empty());
  EXPECT_FALSE(KeptMatrices(request("model")).is_reading());
}

TEST_F(Kept, ADamagedFileIsRemoved) {
  for (const std::string& damage : {"cut", "text", "size", "empty"}) {
    keep("model");
    ASSERT_EQ(files().size(), 1u);
    const fs::path file = files()[0];
    const auto size = static_cast<std::int64_t>(fs::file_size(file));
    if (damage == "cut") fs::resize_file(file, static_cast<std::uintmax_t>(size / 2));
    if (damage == "empty") fs::resize_file(file, 0);
    if (damage == "text" || damage == "size") {
      std::fstream out(file, std::ios::in | std::ios::out | std::ios::binary);
      out.seekp(damage == "text" ? size - 40 : size - 3);
      out << "zzz";
    }
    EXPECT_FALSE(KeptMatrices(request("model")).is_reading()) << damage;
    EXPECT_TRUE(files().empty()) << damage;
  }
}

TEST_F(Kept, TheOneThatWasUsedLongestAgoMakesRoom) {
  keep("first");
  const fs::path first = files()[0];
  keep("second");
  fs::last_write_time(first, fs::file_time_type::clock::now() - std::chrono::hours(1));
  const auto size = static_cast<std::int64_t>(fs::file_size(first));
  {
    KeptMatrices third({folder_.path() + "/packed", "third", size, 2 * size + 100});
  }
  EXPECT_FALSE(fs::exists(first));
  EXPECT_TRUE(KeptMatrices(request("second")).is_reading());
}

TEST_F(Kept, AModelThatNeverFitsTakesNoOthersPlace) {
  keep("first");
  {
    KeptMatrices large({folder_.path() + "/packed", "large", kMost + 1, kMost});
  }
  EXPECT_TRUE(KeptMatrices(request("first")).is_reading());
}

TEST_F(Kept, OfTwoThatWriteTheSameOneKeepsIt) {
  PackedMatrix matrix = some_matrix(DType::q4_0, 1, pool_), same = some_matrix(DType::q4_0, 1, pool_);
  {
    KeptMatrices first(request("model")), second(request("model"));
    first.put("a tensor", matrix);
    second.put("a tensor", same);
    EXPECT_GT(first.mapped_bytes(), 0);
    EXPECT_EQ(second.mapped_bytes(), 0);
    second.finish();
    first.finish();
  }
  EXPECT_EQ(files().size(), 1u);
  EXPECT_TRUE(KeptMatrices(request("model")).is_reading());
}

TEST_F(Kept, WithoutRoomMatricesStayInMemory) {
  for (const KeepRequest& refused : {KeepRequest{folder_.path(), "model", 2000, 1000},
                                     KeepRequest{folder_.path(), "model", kMost << 20, kMost << 21},
                                     KeepRequest{"/proc/nothing", "model", 1000, kMost}}) {
    KeptMatrices kept(refused);
    PackedMatrix matrix = some_matrix(DType::q8_0, 3, pool_);
    kept.put("a tensor", matrix);
    kept.finish();
    EXPECT_EQ(std::memcmp(matrix.data(), some_matrix(DType::q8_0, 3, pool_).data(), matrix.nbytes()), 0);
  }
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

}  // namespace
}  // namespace minisgl
