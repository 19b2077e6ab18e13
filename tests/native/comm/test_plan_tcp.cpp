// The channel between hosts: frames arrive in order, strangers get nothing, the lost are named.

#include <chrono>
#include <future>
#include <thread>

#include "comm/plan_ends.h"
#include "comm/plan_tcp.h"
#include "comm/ranks.h"
#include "comm/tcp_socket.h"
#include "core/error.h"

namespace minisgl::testing_support {
namespace {

using std::chrono::milliseconds;

PlanTcpOptions local_options() {
  return {.host = "127.0.0.1", .port = free_port(), .connect_limit = milliseconds(20'000)};
}

RemoteRank remote_rank(int rank, int secret = 1) {
  RemoteRank remote{.rank = rank, .keys = {}};
  remote.keys.follower.fill(static_cast<std::byte>(rank * 10 + secret));
  remote.keys.primary.fill(static_cast<std::byte>(rank * 10 + secret + 100));
  return remote;
}

auto listen_in_background(const PlanTcpOptions& options, std::vector<RemoteRank> ranks) {
  return std::async(std::launch::async, [options, ranks] { return accept_plan_readers(options, ranks); });
}

TEST(PlanTcp, EveryRankGetsEveryFrameInOrder) {
  const PlanTcpOptions options = local_options();
  std::vector<std::thread> readers;
  for (int rank = 2; rank < 4; ++rank) {  // they come before rank 0 does
    readers.emplace_back([&, rank] {
      expect_frames(*connect_to_plans(options, remote_rank(rank)), 2000, 100'000, 7, static_cast<unsigned>(rank));
    });
  }
  usleep(50'000);
  send_frames(*accept_plan_readers(options, {remote_rank(2), remote_rank(3)}), 2000, 100'000, 7);
  for (std::thread& reader : readers) reader.join();
}

TEST(PlanTcp, StrangersAreTurnedAwayAndTheRankComesInAllTheSame) {
  const PlanTcpOptions options = local_options();
  auto sender = listen_in_background(options, {remote_rank(1)});
  PlanTcpOptions hurried = options;
  hurried.connect_limit = milliseconds(1000);  // which both wait for
  const std::string sentence = concat("rank 0 turned this rank away at 127.0.0.1 port ", options.port);
  expect_failure([&] { connect_to_plans(hurried, remote_rank(1, 2)); }, sentence);  // a wrong key
  expect_failure([&] { connect_to_plans(hurried, remote_rank(2)); }, sentence);     // not asked for
  const auto receiver = connect_to_plans(options, remote_rank(1));
  const auto connected = sender.get();
  connected->send(std::as_bytes(std::span("plan")));
  EXPECT_EQ(receiver->receive().size(), 5u);
}

TEST(PlanTcp, SilentStrangersKeepNobodyWaiting) {
  const PlanTcpOptions options = local_options();
  auto sender = listen_in_background(options, {remote_rank(1)});
  const SocketAddress address = resolve_address(options.host, std::to_string(options.port));
  std::vector<FileDescriptor> strangers;
  while (strangers.size() < 20) {
    strangers.push_back(try_to_connect(address, kNoDeadline));
    if (!strangers.back()) strangers.pop_back();  // nobody listens yet
  }
  const auto began = std::chrono::steady_clock::now();
  const auto receiver = connect_to_plans(options, remote_rank(1));
  sender.get();
  EXPECT_LT(std::chrono::steady_clock::now() - began, milliseconds(10'000));  // one after the other: 40 s
}

TEST(PlanTcp, AStrangerThatDripsBytesIsCutOff) {
  const PlanTcpOptions options = local_options();
  auto sender = listen_in_background(options, {remote_rank(1)});
  FileDescriptor stranger;
  while (!stranger) stranger = try_to_connect(resolve_address(options.host, std::to_string(options.port)), kNoDeadline);
  auto rank = std::async(std::launch::async, [&] { return connect_to_plans(options, remote_rank(1)); });
  int num_sent = 0;  // a greeting has 44
  while (num_sent < 40 && send_all(stranger, std::as_bytes(std::span("m", 1)), kNoDeadline)) {
    ++num_sent;
    std::this_thread::sleep_for(milliseconds(200));
  }
  EXPECT_LT(num_sent, 40);
  const auto receiver = rank.get();
  sender.get()->send(std::as_bytes(std::span("plan")));
  EXPECT_EQ(receiver->receive().size(), 5u);
}

TEST(PlanTcp, WhoPretendsToBeRank0IsRefused) {
  const PlanTcpOptions options = local_options();
  RemoteRank deceived = remote_rank(1);
  deceived.keys.primary.fill(std::byte{0});
  auto sender = listen_in_background(options, {deceived});
  expect_failure(
      [&] { connect_to_plans(options, remote_rank(1)); },
      concat("authentication failed: the peer at 127.0.0.1 port ", options.port, " is not rank 0 of this group"));
  sender.get();
}

TEST(PlanTcp, RanksThatDoNotComeAreNamed) {
  PlanTcpOptions options = local_options();
  options.connect_limit = milliseconds(100);
  expect_failure([&] { accept_plan_readers(options, {remote_rank(4), remote_rank(5)}); },
                 concat("rank 4, rank 5 did not connect to 127.0.0.1 port ", options.port, " within 0.1 s"));
}

TEST(PlanTcp, AnEndOnEitherSideIsNoticed) {
  const PlanTcpOptions options = local_options();
  auto listening = listen_in_background(options, {remote_rank(1)});
  auto receiver = connect_to_plans(options, remote_rank(1));
  auto sender = listening.get();
  sender.reset();
  expect_failure([&] { receiver->receive(); }, "rank 0 closed its connection");

  listening = listen_in_background(options, {remote_rank(1)});
  receiver = connect_to_plans(options, remote_rank(1));
  sender = listening.get();
  receiver.reset();
  EXPECT_THROW(send_frames(*sender, 10'000, 10'000, 1), RankFailure);
}

TEST(PlanTcp, AReaderThatTakesNothingIsLost) {
  PlanTcpOptions options = local_options();
  options.stall_limit = milliseconds(1000);
  auto listening = listen_in_background(options, {remote_rank(1)});
  const auto receiver = connect_to_plans(options, remote_rank(1));
  const auto sender = listening.get();
  EXPECT_THROW(send_frames(*sender, 10'000, 100'000, 1), RankFailure);
}

TEST(PlanTcp, AnInterruptEndsTheWait) {
  const PlanTcpOptions options = local_options();
  auto listening = listen_in_background(options, {remote_rank(1)});
  const auto receiver = connect_to_plans(options, remote_rank(1));
  const auto sender = listening.get();
  std::thread other([&] {
    usleep(20'000);
    receiver->interrupt();
  });
  EXPECT_THROW(receiver->receive(), ChannelInterrupted);
  other.join();
}

TEST(PlanTcp, AnAddressThatIsNoneIsRefused) {
  PlanTcpOptions options = local_options();
  options.host = "no such host";
  EXPECT_THROW(accept_plan_readers(options, {remote_rank(1)}), InputError);
  EXPECT_THROW(connect_to_plans(options, remote_rank(1)), InputError);
}

}  // namespace
}  // namespace minisgl::testing_support
