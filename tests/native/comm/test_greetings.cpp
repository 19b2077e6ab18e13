// Connections that arrive, and the deadline of who waits for them.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <utility>

#include "comm/greetings.h"
#include "comm/tcp_socket.h"

namespace minisgl {
namespace {

using std::chrono::milliseconds;

// A process without a descriptor to spare: the listener stays readable, and no connection can be accepted.
class NoDescriptors {
 public:
  NoDescriptors() {
    getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit few{.rlim_cur = 3, .rlim_max = before_.rlim_max};
    setrlimit(RLIMIT_NOFILE, &few);
  }
  ~NoDescriptors() { setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
};

TEST(Greetings, TheDeadlineHoldsWhereNoConnectionCanBeAccepted) {
  FileDescriptor listener = listen_at(resolve_address("127.0.0.1", "0"), "here");
  const SocketAddress address = own_address(listener);
  const FileDescriptor caller = try_to_connect(address, deadline_in(milliseconds(10'000)));
  ASSERT_TRUE(caller);
  Greetings greetings(std::move(listener), 4, milliseconds(10'000));
  bool came = true;
  {
    const NoDescriptors none;
    came = greetings.next(deadline_in(milliseconds(100))).has_value();  // returned never, once
  }
  EXPECT_FALSE(came);
}

}  // namespace
}  // namespace minisgl
