// What happens to ranks that share memory when one of them dies, stops, leaves or never comes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/un.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <future>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "comm/file_descriptor.h"
#include "comm/random_parts.h"
#include "comm/ranks.h"
#include "comm/shm.h"
#include "comm/sum.h"

namespace minisgl {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

// The message of the RankFailure that repeated sums end with; "" if they don't within a minute.
std::string failure_of(Communicator& comm, int* culprit = nullptr) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  std::vector<float> data(1000);
  while (std::chrono::steady_clock::now() < deadline) {
    try {
      comm.all_reduce_sum(data.data(), 1000, DType::f32, 0);
    } catch (const RankFailure& failure) {
      if (culprit) *culprit = failure.rank();
      return failure.what();
    }
  }
  return "";
}

constexpr milliseconds kTimeToCome(60'000);

// Three processes of which `fate` befalls the last in the midst of sums; the messages of the other two.
std::vector<std::string> messages_after(int signal, milliseconds timeout, milliseconds& took) {
  const std::string name = unique_group_name();
  int ready[2], said[2];
  EXPECT_EQ(pipe(ready) + pipe(said), 0);
  std::vector<pid_t> processes;
  for (int rank = 0; rank < 3; ++rank) {
    processes.push_back(start_process([&] {
      const auto comm = make_shm_communicator({name, rank, 3, kTimeToCome});
      comm->barrier(0);
      comm->set_time_limit({timeout, "--a-limit"});
      if (rank == 2 && write(ready[1], "r", 1) != 1) return 1;
      int culprit = -1;
      const std::string message = concat(failure_of(*comm, &culprit), "\n");
      if (write(said[1], message.data(), message.size()) < 0) return 1;
      const bool again = failure_of(*comm) + "\n" == message;
      return culprit == 2 && again ? 0 : 1;
    }));
  }
  char byte;
  EXPECT_EQ(read(ready[0], &byte, 1), 1);
  usleep(20'000);
  const auto start = std::chrono::steady_clock::now();
  kill(processes[2], signal);
  for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(wait_for_process(processes[rank]), 0);
  took = std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - start);
  kill(processes[2], SIGKILL);
  wait_for_process(processes[2]);
  close(said[1]);
  std::vector<std::string> messages(1);
  while (read(said[0], &byte, 1) == 1) {
    if (byte == '\n')
      messages.emplace_back();
    else
      messages.back() += byte;
  }
  messages.pop_back();
  for (const int fd : {ready[0], ready[1], said[0]}) close(fd);
  return messages;
}

TEST(ShmFailure, ADeadRankIsNamedAtOnce) {
  milliseconds took;
  const auto messages = messages_after(SIGKILL, milliseconds(60'000), took);
  EXPECT_THAT(messages, testing::ElementsAre(testing::MatchesRegex("rank 2 \\(process [0-9]+\\) has died"),
                                             testing::MatchesRegex("rank 2 \\(process [0-9]+\\) has died")));
  EXPECT_LT(took, milliseconds(30'000));
}

TEST(ShmFailure, AStoppedRankIsNamedAfterTheTimeLimit) {
  milliseconds took;
  const auto messages = messages_after(SIGSTOP, milliseconds(1000), took);
  EXPECT_THAT(
      messages,
      testing::Each(testing::MatchesRegex(
          "rank 2 \\(process [0-9]+\\) didn't come to a collective within 1 s \\(--a-limit\\) and is stopped")));
  EXPECT_EQ(messages.size(), 2u);
  EXPECT_GE(took, milliseconds(500));  // the others may have waited for it already
}

TEST(ShmFailure, ARankThatLeavesEndsTheOthersCollectives) {
  auto comms = make_shm_communicators(3);
  std::thread waiting([&] { EXPECT_THAT(failure_of(*comms[0]), HasSubstr("rank 1")); });
  comms[1].reset();
  waiting.join();
  EXPECT_THAT(failure_of(*comms[2]), HasSubstr("has left the group"));
}

template <typename Failure>
std::string message_of(const ShmOptions& options) {
  try {
    make_shm_communicator(options);
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "";
}

TEST(ShmRendezvous, NamesTheRanksThatDontCome) {
  // On a busy host it may take longer than the first of these limits until both have come.
  std::vector<std::string> messages(2);
  const auto name_both = [&] { return testing::Each(HasSubstr("ranks 0, 2 didn't come within ")); };
  for (const int limit : {300, 3'000, 30'000}) {
    const std::string name = unique_group_name();
    std::thread other([&] { messages[0] = message_of<RankFailure>({name, 1, 4, milliseconds(limit)}); });
    messages[1] = message_of<RankFailure>({name, 3, 4, milliseconds(limit)});
    other.join();
    if (testing::Value(messages, name_both())) break;
  }
  EXPECT_THAT(messages, name_both());
}

TEST(ShmRendezvous, ASilentConnectionKeepsNobodyWaiting) {
  const std::string name = unique_group_name();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = "minisgl-" + name;
  std::memcpy(address.sun_path + 1, path.data(), path.size());
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + path.size());
  const auto began = std::chrono::steady_clock::now();
  std::thread first([&] { make_shm_communicator({name, 0, 2, milliseconds(20'000)}); });
  const FileDescriptor stranger(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  while (connect(stranger.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) usleep(1000);
  make_shm_communicator({name, 1, 2, milliseconds(20'000)});
  first.join();
  EXPECT_LT(std::chrono::steady_clock::now() - began, milliseconds(10'000));
}

// Waits until somebody listens.
void wait_for_socket(const std::string& path) {
  for (bool found = false; !found; usleep(1000)) {
    std::ifstream sockets("/proc/net/unix");
    for (std::string line; !found && std::getline(sockets, line);) found = line.ends_with(" " + path);
  }
}

TEST(ShmRendezvous, NamesARankThatDiesMeanwhile) {
  const std::string name = unique_group_name();
  const std::string path = "@minisgl-" + name;
  auto waiting =
      std::async(std::launch::async, [&] { return message_of<RankFailure>({name, 0, 3, milliseconds(60'000)}); });
  wait_for_socket(path);
  // Nobody can be named who dies before it has said who it is, so another one comes then.
  auto life = milliseconds(50);
  do {
    const pid_t process =
        start_process([&] { return make_shm_communicator({name, 2, 3, milliseconds(20'000)}) ? 0 : 1; });
    std::this_thread::sleep_for(life *= 2);
    kill(process, SIGKILL);
    wait_for_process(process);
  } while (waiting.wait_for(milliseconds(500)) != std::future_status::ready);
  EXPECT_THAT(waiting.get(), HasSubstr("rank 2 ended before all ranks had come"));
}

TEST(ShmRendezvous, RefusesRanksThatDontFit) {
  const std::string name = unique_group_name();
  std::thread other([&] { EXPECT_THAT(message_of<InputError>({name, 0, 2, milliseconds(20'000)}), HasSubstr("fit")); });
  EXPECT_THAT(message_of<InputError>({name, 0, 2, milliseconds(20'000)}), HasSubstr("has that rank"));
  other.join();
  EXPECT_THAT(message_of<InputError>({name, 2, 2}), HasSubstr("rank must be in [0, 2), got 2"));
  EXPECT_THAT(message_of<InputError>({"", 0, 2}), HasSubstr("1 to 64 characters"));
}

}  // namespace
}  // namespace minisgl
