// The native log: lines wait in order for whoever took it over, and none is lost without a word.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <thread>
#include <vector>

#include "core/error.h"
#include "core/log.h"

namespace minisgl {
namespace {

bool is_readable(const LogTaker& taker) {
  pollfd event{.fd = taker.event_fd(), .events = POLLIN, .revents = 0};
  return poll(&event, 1, 0) == 1;
}

TEST(Log, LinesWaitInOrderForWhoeverTookItOver) {
  LogTaker taker;
  EXPECT_FALSE(is_readable(taker));
  log_line(LogLevel::debug, "first");
  log_line(LogLevel::error, "second");
  EXPECT_TRUE(is_readable(taker));
  const std::vector<LogLine> lines = taker.take();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].text, "first");
  EXPECT_EQ(lines[0].level, LogLevel::debug);
  EXPECT_EQ(lines[1].text, "second");
  EXPECT_EQ(lines[1].level, LogLevel::error);
  EXPECT_FALSE(is_readable(taker));
  EXPECT_TRUE(taker.take().empty());
}

TEST(Log, NobodyTakesItOverTwice) {
  const LogTaker taker;
  EXPECT_THROW(LogTaker(), InputError);
}

TEST(Log, WithoutATakerLinesGoToStderrButForDetails) {
  testing::internal::CaptureStderr();
  {
    LogTaker taker;
    log_line(LogLevel::warning, "not taken");
  }
  log_line(LogLevel::debug, "a detail");
  log_line(LogLevel::info, "after it");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "minisgl: not taken\nminisgl: after it\n");
}

TEST(Log, ManyThreadsLoseNothingAndWhatIsTooMuchIsCounted) {
  LogTaker taker;
  constexpr std::size_t each = 400;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread)
    threads.emplace_back([] {
      for (std::size_t i = 0; i < each; ++i) log_line(LogLevel::info, "a line");
    });
  for (std::thread& thread : threads) thread.join();
  const std::vector<LogLine> lines = taker.take();
  ASSERT_EQ(lines.size(), LogTaker::max_waiting_lines + 1);
  EXPECT_EQ(lines.back().text, concat(4 * each - LogTaker::max_waiting_lines, " lines of the log were left out"));
}

}  // namespace
}  // namespace minisgl
