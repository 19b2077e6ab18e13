// What happens to ranks joined by TCP when one of them dies, stops or never comes, and when strangers come.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "comm/ranks.h"
#include "comm/tcp.h"
#include "comm/tcp_socket.h"
#include "core/error.h"

namespace minisgl {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr milliseconds kTimeToCome(60'000);

// The message that sums on rank 0 of 2 end with after the other one, a process, has got `signal`.
std::string message_after(int signal, milliseconds timeout) {
  const std::string address = free_address();
  const pid_t process = start_process([&] {
    const auto comm = make_tcp_communicator({address, "a secret", 1, 2, kTimeToCome});
    float data = 1;
    comm->barrier(0);
    while (true) comm->all_reduce_sum(&data, 1, DType::f32, 0);
    return 0;
  });
  std::string message;
  try {
    const auto comm = make_tcp_communicator({address, "a secret", 0, 2, kTimeToCome});
    comm->barrier(0);
    comm->set_time_limit({timeout, "--a-limit"});
    std::vector<float> data(1000);
    for (int i = 0;; ++i) {
      if (i == 100) kill(process, signal);
      float one = 1;
      comm->all_reduce_sum(&one, 1, DType::f32, 0);
    }
  } catch (const RankFailure& failure) {
    EXPECT_EQ(failure.rank(), 1);
    message = failure.what();
  }
  kill(process, SIGKILL);
  wait_for_process(process);
  return message;
}

TEST(TcpFailure, ADeadRankIsNamed) {
  EXPECT_EQ(message_after(SIGKILL, milliseconds(60'000)), "rank 1 has ended its connection");
}

TEST(TcpFailure, AStoppedRankIsNamedAfterTheTimeLimit) {
  EXPECT_EQ(message_after(SIGSTOP, milliseconds(500)), "rank 1 didn't come to a collective within 0.5 s (--a-limit)");
}

template <typename Failure>
std::string message_of(const TcpOptions& options) {
  try {
    make_tcp_communicator(options);
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "";
}

TEST(TcpMeeting, NamesARankThatDoesntCome) {
  const std::string address = free_address();
  EXPECT_EQ(message_of<RankFailure>({address, "a secret", 0, 2, milliseconds(200)}), "rank 1 didn't come within 0.2 s");
  EXPECT_EQ(message_of<RankFailure>({address, "a secret", 1, 2, milliseconds(200)}), "rank 0 didn't come within 0.2 s");
}

TEST(TcpMeeting, TurnsAwayWhoDoesntKnowTheSecret) {
  const std::string address = free_address();
  std::thread stranger(
      [&] { EXPECT_NE(message_of<RankFailure>({address, "b secret", 1, 2, milliseconds(1'000)}), ""); });
  std::thread member([&] {
    std::this_thread::sleep_for(milliseconds(300));
    const auto comm = make_tcp_communicator({address, "a secret", 1, 2, milliseconds(20'000)});
    comm->barrier(0);
  });
  const auto comm = make_tcp_communicator({address, "a secret", 0, 2, milliseconds(20'000)});
  comm->barrier(0);
  member.join();
  stranger.join();
}

TEST(TcpMeeting, SilentStrangersKeepNobodyWaiting) {
  const std::string address = free_address();
  const SocketAddress place = resolve_address("127.0.0.1", address.substr(address.find(':') + 1));
  const auto began = std::chrono::steady_clock::now();
  std::thread member([&] {
    std::vector<FileDescriptor> strangers;
    while (strangers.size() < 20) {
      strangers.push_back(try_to_connect(place, kNoDeadline));
      if (!strangers.back()) strangers.pop_back();  // nobody listens yet
    }
    make_tcp_communicator({address, "a secret", 1, 2, milliseconds(60'000)})->barrier(0);
  });
  make_tcp_communicator({address, "a secret", 0, 2, milliseconds(60'000)})->barrier(0);
  member.join();
  EXPECT_LT(std::chrono::steady_clock::now() - began, milliseconds(20'000));  // one after the other: 40 s
}

TEST(TcpMeeting, RefusesWhatCantWork) {
  EXPECT_THAT(message_of<InputError>({"127.0.0.1", "a secret", 0, 2}), HasSubstr("an address is host:port"));
  EXPECT_THAT(message_of<InputError>({"127.0.0.1:1", "short", 0, 2}), HasSubstr("8 to 64 bytes, got 5"));
  EXPECT_THAT(message_of<InputError>({"127.0.0.1:1", "a secret", 2, 2}), HasSubstr("rank must be in [0, 2), got 2"));
  // An address for documentation, which no host has.
  EXPECT_THAT(message_of<InputError>({"192.0.2.1:1", "a secret", 0, 2}), HasSubstr("can't listen at 192.0.2.1:1"));
}

}  // namespace
}  // namespace minisgl
