// Choices of algorithms on disk: what was written comes back, and nothing else does.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "gemm/choice_file.h"

namespace minisgl {
namespace {

namespace fs = std::filesystem;

class ChoiceFile : public testing::Test {
 protected:
  void SetUp() override { fs::remove_all(folder); }
  void TearDown() override { fs::remove_all(folder); }
  std::string text() const {
    std::ostringstream all;
    all << std::ifstream(file).rdbuf();
    return all.str();
  }
  void write(const std::string& content) const { std::ofstream(file) << content; }

  const fs::path folder = fs::temp_directory_path() /
                          (std::string("minisgl-") + testing::UnitTest::GetInstance()->current_test_info()->name());
  const fs::path file = folder / "deeper" / "choices.txt";
  const GemmChoices choices{{{4096, 1024, 64, false, true, false}, {0, 1, 0xffffffffffffffff, 3, 4, 5, 6, 7}},
                            {{4096, 1024, 64, true, true, false}, {9, 8, 7, 6, 5, 4, 3, 2}},
                            {{151936, 1024, 8192, true, false, false}, {}},
                            {{151936, 1024, 8192, true, false, true}, {5}}};
};

TEST_F(ChoiceFile, WhatWasWrittenComesBack) {
  EXPECT_TRUE(read_choices(file, "a GPU").empty());
  write_choices(file, "a GPU", choices);
  EXPECT_EQ(read_choices(file, "a GPU"), choices);
  write_choices(file, "a GPU", {});
  EXPECT_TRUE(read_choices(file, "a GPU").empty());
  EXPECT_EQ(std::distance(fs::directory_iterator(file.parent_path()), {}), 1);  // no drafts
}

TEST_F(ChoiceFile, AnotherGpusChoicesAreNotRead) {
  write_choices(file, "a GPU", choices);
  EXPECT_TRUE(read_choices(file, "another GPU").empty());
  EXPECT_TRUE(read_choices(file, "a").empty());
}

TEST_F(ChoiceFile, EveryShorterFileIsDamaged) {
  write_choices(file, "a GPU", choices);
  const std::string whole = text();
  for (std::size_t size = 0; size + 1 < whole.size(); ++size) {  // without the last line's end it is still whole
    write(whole.substr(0, size));
    ASSERT_TRUE(read_choices(file, "a GPU").empty()) << size;
  }
}

TEST_F(ChoiceFile, OtherDamageIsNoticed) {
  write_choices(file, "a GPU", choices);
  const std::string whole = text();
  const std::size_t lines = whole.find('\n') + 1;
  for (const std::string& content :
       {whole + "more\n", whole.substr(0, lines) + "1 2 3\n" + whole.substr(lines),
        whole.substr(0, lines) + whole.substr(lines, whole.find('\n', lines) + 1 - lines) + whole.substr(lines),
        whole.substr(0, lines) + "x" + whole.substr(lines)}) {
    write(content);
    EXPECT_TRUE(read_choices(file, "a GPU").empty()) << content;
  }
}

TEST_F(ChoiceFile, AFolderThatCantBeMadeIsNoError) {
  fs::create_directories(folder);
  std::ofstream(folder / "deeper") << "a file";
  write_choices(file, "a GPU", choices);
  EXPECT_TRUE(read_choices(file, "a GPU").empty());
}

}  // namespace
}  // namespace minisgl
