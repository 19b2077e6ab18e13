// One poll() over the listener and all connections that have not said everything yet.
#include "comm/greetings.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "comm/tcp_socket.h"

namespace minisgl {
namespace {

// This many connections may have said too little. One more, and the oldest is closed: a rank speaks at once.
constexpr std::size_t kMostArrivals = 256;

}  // namespace

std::optional<Greetings::Caller> Greetings::next(Deadline deadline) {
  while (true) {
    if (has_passed(deadline)) return std::nullopt;  // also while something happens at every look
    while (!arrivals_.empty() && has_passed(arrivals_.front().deadline)) arrivals_.pop_front();
    std::vector<pollfd> polled = {{listener_.get(), POLLIN, 0}};
    for (const Arrival& arrival : arrivals_) polled.push_back({arrival.socket.get(), POLLIN, 0});
    const Deadline first = arrivals_.empty() ? deadline : std::min(deadline, arrivals_.front().deadline);
    if (poll(polled.data(), polled.size(), milliseconds_until(first)) <= 0) continue;
    auto arrival = arrivals_.begin();
    for (std::size_t i = 1; i < polled.size(); ++i) {
      const auto current = arrival++;
      if (polled[i].revents == 0) continue;
      const State state = read(*current);
      if (state == State::incomplete) continue;
      Arrival done = std::move(*current);
      arrivals_.erase(current);
      if (state == State::complete) return Caller{std::move(done.socket), std::move(done.bytes)};
    }
    if (polled[0].revents != 0) accept_one();
  }
}

void Greetings::accept_one() {
  FileDescriptor socket = accept_connection(listener_, deadline_in(std::chrono::milliseconds(0)));
  if (!socket) return;
  if (arrivals_.size() == kMostArrivals) arrivals_.pop_front();
  arrivals_.push_back({std::move(socket), deadline_in(limit_), {}});
}

Greetings::State Greetings::read(Arrival& arrival) const {
  const std::size_t before = arrival.bytes.size();
  arrival.bytes.resize(num_bytes_);
  const ssize_t count = recv(arrival.socket.get(), arrival.bytes.data() + before, num_bytes_ - before, MSG_DONTWAIT);
  arrival.bytes.resize(before + static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
  if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) return State::over;
  return arrival.bytes.size() == num_bytes_ ? State::complete : State::incomplete;
}

}  // namespace minisgl
