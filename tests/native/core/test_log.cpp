#include <gtest/gtest.h>

#include <string>

#include "core/log.h"

namespace minisgl {
namespace {

TEST(Log, AJsonLineHasTheFieldsOfThePythonLines) {
  EXPECT_EQ(format_log_line(LogLevel::warning, "it \"ended\"\n", true, "minisgl-TP0-scheduler", 1'700'000'000, 42),
            R"({"time":"2023-11-14T22:13:20.042Z","level":"warning","logger":"minisgl._native",)"
            R"("process":"minisgl-TP0-scheduler","message":"it \"ended\"\u000a"})");
  EXPECT_NE(format_log_line(LogLevel::error, "a\xff\\", true, "", 0, 0).find(R"("a\u00ff\\")"), std::string::npos);
}

TEST(Log, ATextLineHasTimeLevelAndTheProcessThatSpeaks) {
  EXPECT_EQ(format_log_line(LogLevel::error, "it ended", false, "", 0, 0).substr(8), " ERROR it ended");
  EXPECT_EQ(format_log_line(LogLevel::error, "it ended", false, "minisgl-TP1-scheduler", 0, 0).substr(8),
            " ERROR minisgl-TP1-scheduler: it ended");
}

TEST(Log, OnlyLinesOfTheLevelAndAboveAreWritten) {
  testing::internal::CaptureStderr();
  log_line(LogLevel::info, "not yet");
  log_line(LogLevel::warning, "first");
  set_log(LogLevel::info, true, "minisgl-TP0-scheduler");
  log_line(LogLevel::info, "second");
  log_line(LogLevel::debug, "not this");
  set_log(LogLevel::warning, false, std::string(2 * kMaxProcessName, 'x'));
  log_line(LogLevel::error, "third");
  set_log(LogLevel::warning, false, "");
  const std::string written = testing::internal::GetCapturedStderr();
  EXPECT_EQ(written.find("not"), std::string::npos);
  EXPECT_NE(written.find(" WARNING first\n{"), std::string::npos);
  EXPECT_NE(written.find(R"("process":"minisgl-TP0-scheduler","message":"second"})"), std::string::npos);
  EXPECT_NE(written.find(" ERROR " + std::string(kMaxProcessName, 'x') + ": third\n"), std::string::npos);
}

}  // namespace
}  // namespace minisgl
