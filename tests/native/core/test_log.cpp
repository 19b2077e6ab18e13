#include <gtest/gtest.h>

#include <string>

#include "core/log.h"

namespace minisgl {
namespace {

TEST(Log, AJsonLineHasTheFieldsOfThePythonLines) {
  EXPECT_EQ(format_log_line(LogLevel::warning, "it \"ended\"\n", true, 1'700'000'000, 42),
            R"({"time":"2023-11-14T22:13:20.042Z","level":"warning","logger":"minisgl._native",)"
            R"("message":"it \"ended\"\u000a"})");
  EXPECT_NE(format_log_line(LogLevel::error, "a\xff\\", true, 0, 0).find(R"("a\u00ff\\")"), std::string::npos);
}

TEST(Log, ATextLineHasTimeAndLevel) {
  const std::string line = format_log_line(LogLevel::error, "it ended", false, 0, 0);
  EXPECT_EQ(line.substr(8), " ERROR it ended");
}

TEST(Log, OnlyLinesOfTheLevelAndAboveAreWritten) {
  testing::internal::CaptureStderr();
  log_line(LogLevel::info, "not yet");
  log_line(LogLevel::warning, "first");
  set_log(LogLevel::info, true);
  log_line(LogLevel::info, "second");
  log_line(LogLevel::debug, "not this");
  set_log(LogLevel::warning, false);
  const std::string written = testing::internal::GetCapturedStderr();
  EXPECT_EQ(written.find("not"), std::string::npos);
  EXPECT_NE(written.find(" WARNING first\n{"), std::string::npos);
  EXPECT_NE(written.find("\"message\":\"second\"}\n"), std::string::npos);
}

}  // namespace
}  // namespace minisgl
