// The ring's layout, its two waits, and the look at whether the other end lives.
#include "comm/plan_ring.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <optional>
#include <utility>

#include "comm/file_descriptor.h"
#include "comm/futex.h"
#include "core/error.h"
#include "core/pause.h"

namespace minisgl {
namespace {

using SteadyClock = std::chrono::steady_clock;

// What one rank says about itself.
struct alignas(64) Seat {
  std::atomic<std::uint64_t> position;  // bytes written (rank 0) or read (others) since the beginning
  std::atomic<std::int32_t> pid;        // 0: not there yet
};

struct Header {
  // Futex words: each grows after the position that its sleepers wait for has moved.
  alignas(64) std::atomic<std::uint32_t> published;
  std::atomic<std::uint32_t> num_sleepers;  // readers
  alignas(64) std::atomic<std::uint32_t> freed;
  std::atomic<std::uint32_t> writer_sleeps;  // 0 or 1
  Seat seats[max_ring_ranks];                // by rank
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

// The shared memory of one end.
class Mapping {
 public:
  Mapping(int fd, int size) {
    MINISGL_CHECK(size >= 1 && size <= max_ring_ranks, "size is ", size);
    struct stat status{};
    if (fstat(fd, &status) != 0 || status.st_size <= static_cast<off_t>(sizeof(Header))) {
      throw InputError(concat("the plan channel's descriptor ", fd, " is not a ring"));
    }
    bytes_ = static_cast<std::size_t>(status.st_size);
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (memory == MAP_FAILED) throw InputError(concat("the plan channel can't be mapped: ", std::strerror(errno)));
    memory_ = static_cast<std::byte*>(memory);
  }
  ~Mapping() { munmap(memory_, bytes_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  Header& header() const { return *reinterpret_cast<Header*>(memory_); }
  std::size_t capacity() const { return bytes_ - sizeof(Header); }

  // Copies bytes from or to the ring at a position, over its end if need be.
  void read(std::uint64_t position, std::span<std::byte> to) const {
    const std::size_t start = position % capacity(), first = std::min(to.size(), capacity() - start);
    if (to.empty()) return;
    std::memcpy(to.data(), data() + start, first);
    if (to.size() > first) std::memcpy(to.data() + first, data(), to.size() - first);
  }
  void write(std::uint64_t position, std::span<const std::byte> from) {
    const std::size_t start = position % capacity(), first = std::min(from.size(), capacity() - start);
    if (from.empty()) return;
    std::memcpy(data() + start, from.data(), first);
    if (from.size() > first) std::memcpy(data(), from.data() + first, from.size() - first);
  }

 private:
  std::byte* data() const { return memory_ + sizeof(Header); }
  std::byte* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

// Whether the process in a seat has ended. Where the kernel has no pidfd, none ever has: the parent of the ranks ends
// them in any case.
class Watch {
 public:
  bool ended(const Seat& seat) {
    const std::int32_t pid = seat.pid.load(std::memory_order_acquire);
    if (pid <= 0) return false;
    if (!descriptor_) {
      descriptor_ = FileDescriptor(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
      if (!descriptor_) return errno == ESRCH;
    }
    pollfd event{.fd = descriptor_.get(), .events = POLLIN, .revents = 0};
    return poll(&event, 1, 0) == 1;
  }

 private:
  FileDescriptor descriptor_;
};

class RingSender final : public PlanSender {
 public:
  RingSender(int fd, const PlanRingOptions& options)
      : options_(options), ring_(fd, options.size), watches_(static_cast<std::size_t>(options.size)) {
    seat(0).pid.store(getpid(), std::memory_order_release);
  }

  void send(std::span<const std::byte> frame) override {
    MINISGL_CHECK(frame.size() <= max_plan_frame_bytes, "a frame of ", frame.size(), " bytes");
    const auto length = static_cast<std::uint32_t>(frame.size());
    put(std::as_bytes(std::span(&length, 1)));
    put(frame);
    publish();
  }

 private:
  Seat& seat(int rank) { return ring_.header().seats[rank]; }

  // Writes behind what was written; readers see it with the next publish(), at the latest when the ring is full.
  void put(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const std::size_t count = std::min<std::size_t>(bytes.size(), room());
      if (count == 0) {
        publish();
        wait_for_room();
        continue;
      }
      ring_.write(written_, bytes.first(count));
      written_ += count;
      bytes = bytes.subspan(count);
    }
  }

  std::uint64_t room() {
    std::uint64_t least = written_;
    for (int rank = 1; rank < options_.size; ++rank) least = std::min(least, read_by(rank));
    return ring_.capacity() - (written_ - least);
  }

  std::uint64_t read_by(int rank) {
    const std::uint64_t position = seat(rank).position.load(std::memory_order_seq_cst);
    if (position > written_ || written_ - position > ring_.capacity()) {
      throw RankFailure(rank, "the plan channel is damaged");
    }
    return position;
  }

  void publish() {
    Header& header = ring_.header();
    seat(0).position.store(written_, std::memory_order_seq_cst);
    header.published.fetch_add(1, std::memory_order_seq_cst);
    if (header.num_sleepers.load(std::memory_order_seq_cst) > 0) futex_wake(header.published, 1);
  }

  void wait_for_room() {
    Header& header = ring_.header();
    const auto deadline = SteadyClock::now() + options_.stall_limit;
    header.writer_sleeps.store(1, std::memory_order_seq_cst);
    while (true) {
      const std::uint32_t seen = header.freed.load(std::memory_order_seq_cst);
      if (room() > 0) break;
      if (SteadyClock::now() >= deadline) fail_late();
      if (futex_wait(header.freed, seen, SteadyClock::now() + std::min(options_.check_interval, options_.stall_limit)))
        continue;
      for (int rank = 1; rank < options_.size; ++rank) {
        if (watches_[static_cast<std::size_t>(rank)].ended(seat(rank)))
          throw RankFailure(rank, concat("rank ", rank, " is dead"));
      }
    }
    header.writer_sleeps.store(0, std::memory_order_seq_cst);
  }

  // The first laggard is to blame, and all are named.
  [[noreturn]] void fail_late() {
    int first = -1;
    std::string text;
    for (int rank = 1; rank < options_.size; ++rank) {
      if (written_ - read_by(rank) != ring_.capacity()) continue;
      if (first < 0) first = rank;
      text += concat(text.empty() ? "rank " : ", rank ", rank);
    }
    throw RankFailure(first, concat(text, " did not read its step plans for ", limit_text()));
  }
  std::string limit_text() const { return concat(static_cast<double>(options_.stall_limit.count()) / 1000, " s"); }

  const PlanRingOptions options_;
  Mapping ring_;
  std::vector<Watch> watches_;  // by rank
  std::uint64_t written_ = 0;   // published or not
};

class RingReceiver final : public PlanReceiver {
 public:
  RingReceiver(int fd, int rank, const PlanRingOptions& options) : options_(options), ring_(fd, options.size) {
    MINISGL_CHECK(rank >= 1 && rank < options.size, "rank ", rank, " of ", options.size);
    seat_ = &ring_.header().seats[rank];
    seat_->pid.store(getpid(), std::memory_order_release);
  }

  std::span<const std::byte> receive() override {
    std::uint32_t length = 0;
    get(std::as_writable_bytes(std::span(&length, 1)));
    if (length > max_plan_frame_bytes)
      throw RankFailure(0, concat("the plan channel is damaged: a frame of ", length, " bytes"));
    frame_.resize(length);
    get(frame_);
    return frame_;
  }

  void interrupt() override {
    interrupted_.store(true, std::memory_order_seq_cst);
    ring_.header().published.fetch_add(1, std::memory_order_seq_cst);  // harmless to the others: they look again
    futex_wake(ring_.header().published, INT_MAX);
  }

 private:
  void get(std::span<std::byte> bytes) {
    while (!bytes.empty()) {
      const std::uint64_t waiting = wait_for_bytes();
      const std::size_t count = std::min<std::uint64_t>(bytes.size(), waiting);
      ring_.read(read_, bytes.first(count));
      bytes = bytes.subspan(count);
      release(count);
    }
  }

  void release(std::size_t count) {
    Header& header = ring_.header();
    read_ += count;
    seat_->position.store(read_, std::memory_order_seq_cst);
    if (header.writer_sleeps.load(std::memory_order_seq_cst) != 0) {
      header.freed.fetch_add(1, std::memory_order_seq_cst);
      futex_wake(header.freed, 1);
    }
  }

  std::uint64_t available() const {
    const std::uint64_t written = ring_.header().seats[0].position.load(std::memory_order_seq_cst);
    if (written < read_ || written - read_ > ring_.capacity()) throw RankFailure(0, "the plan channel is damaged");
    return written - read_;
  }

  std::uint64_t wait_for_bytes() {
    if (interrupted_.load(std::memory_order_seq_cst)) throw ChannelInterrupted();
    std::uint64_t bytes = available();
    if (bytes == 0 && options_.spin.count() > 0) {
      const auto deadline = SteadyClock::now() + options_.spin;
      do {
        pause_briefly();
        bytes = available();
      } while (bytes == 0 && SteadyClock::now() < deadline);
    }
    return bytes > 0 ? bytes : sleep_for_bytes();
  }

  std::uint64_t sleep_for_bytes() {
    Header& header = ring_.header();
    header.num_sleepers.fetch_add(1, std::memory_order_seq_cst);
    std::uint64_t bytes = 0;
    bool ended = false;
    while (true) {
      const std::uint32_t seen = header.published.load(std::memory_order_seq_cst);
      bytes = available();
      if (bytes > 0 || ended || interrupted_.load(std::memory_order_seq_cst)) break;
      // What rank 0 wrote before its end is still read.
      if (!futex_wait(header.published, seen, SteadyClock::now() + options_.check_interval))
        ended = watch_.ended(header.seats[0]);
    }
    // Rank 0 woke one: that one wakes the others.
    if (header.num_sleepers.fetch_sub(1, std::memory_order_seq_cst) > 1) futex_wake(header.published, INT_MAX);
    if (bytes == 0 && ended) throw RankFailure(0, "rank 0 is dead");
    if (bytes == 0) throw ChannelInterrupted();
    return bytes;
  }

  const PlanRingOptions options_;
  Mapping ring_;
  Seat* seat_ = nullptr;
  Watch watch_;
  std::atomic<bool> interrupted_ = false;
  std::uint64_t read_ = 0;
  std::vector<std::byte> frame_;
};

}  // namespace

std::size_t plan_ring_bytes(std::size_t capacity) {
  return sizeof(Header) + capacity;
}

std::unique_ptr<PlanSender> open_ring_sender(int fd, const PlanRingOptions& options) {
  return std::make_unique<RingSender>(fd, options);
}

std::unique_ptr<PlanReceiver> open_ring_receiver(int fd, int rank, const PlanRingOptions& options) {
  return std::make_unique<RingReceiver>(fd, rank, options);
}

}  // namespace minisgl
