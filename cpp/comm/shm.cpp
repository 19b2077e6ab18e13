// Collectives over the slots of a ShmGroup, in chunks that fit a slot.
#include "comm/shm.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "comm/peer_watch.h"
#include "comm/shm_group.h"
#include "comm/shm_rendezvous.h"
#include "comm/sum.h"
#include "core/error.h"

namespace minisgl {
namespace {

constexpr auto kSlotBytes = static_cast<std::int64_t>(ShmGroup::kSlotBytes);
// Up to this many bytes every rank sums everything, and ranks meet once; above, each sums its share, and they meet
// twice.
constexpr std::int64_t kSumAllBytes = 16 << 10;
constexpr std::int64_t kLineBytes = 64;

std::shared_ptr<std::byte> map_shared(std::size_t num_bytes, int fd) {
  const int flags = MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS : 0);
  void* memory = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (memory == MAP_FAILED)
    throw InputError(concat("ranks can't share ", num_bytes, " bytes of memory: ", std::strerror(errno)));
  return {static_cast<std::byte*>(memory), [num_bytes](std::byte* address) { munmap(address, num_bytes); }};
}

void copy_bytes(void* to, const void* from, std::int64_t num_bytes) {
  std::memcpy(to, from, static_cast<std::size_t>(num_bytes));
}

class ShmCommunicator final : public Communicator {
 public:
  ShmCommunicator(std::shared_ptr<std::byte> memory, int rank, std::vector<pid_t> pids,
                  std::chrono::milliseconds timeout)
      : group_(std::move(memory), rank, pids, timeout),
        inputs_(pids.size()),
        watch_(pids, [this](int dead_rank) { group_.report_death(dead_rank); }) {}

  ShmGroup& group() { return group_; }

  std::string name() const override { return "shared memory"; }
  int rank() const override { return group_.rank(); }
  int size() const override { return group_.size(); }
  int device() const override { return -1; }

  bool sums_by_rank() const override { return true; }
  void all_reduce_sum(void* data, std::int64_t count, DType dtype, StreamHandle) override {
    check_summable(dtype);
    if (size() == 1) return;
    for_chunks(count, kSlotBytes / row_bytes(dtype, 1), [&](std::int64_t done, std::int64_t chunk) {
      std::byte* part = static_cast<std::byte*>(data) + row_bytes(dtype, done);
      row_bytes(dtype, chunk) <= kSumAllBytes ? sum_all(part, chunk, dtype) : sum_shares(part, chunk, dtype);
    });
  }

  void all_gather(const void* input, void* output, std::int64_t num_bytes, StreamHandle) override {
    auto* parts = static_cast<std::byte*>(output);
    const auto* own = static_cast<const std::byte*>(input);
    if (own != parts + rank() * num_bytes) copy_bytes(parts + rank() * num_bytes, own, num_bytes);
    if (size() == 1) return;
    for_chunks(num_bytes, kSlotBytes, [&](std::int64_t done, std::int64_t chunk) {
      copy_bytes(group_.own_slot(), own + done, chunk);
      group_.exchange();
      for (int other = 0; other < size(); ++other)
        if (other != rank()) copy_bytes(parts + other * num_bytes + done, group_.slot_of(other), chunk);
    });
  }

  void reduce_scatter_sum(const void* input, void* output, std::int64_t count, DType dtype, StreamHandle) override {
    check_summable(dtype);
    const auto* parts = static_cast<const std::byte*>(input);
    const std::int64_t part_bytes = row_bytes(dtype, count);
    const std::int64_t stride = kSlotBytes / size() / kLineBytes * kLineBytes;  // between parts in a slot
    for_chunks(count, stride / row_bytes(dtype, 1), [&](std::int64_t done, std::int64_t chunk) {
      const std::int64_t offset = row_bytes(dtype, done);
      for (int other = 0; other < size(); ++other)
        if (other != rank())
          copy_bytes(group_.own_slot() + other * stride, parts + other * part_bytes + offset, row_bytes(dtype, chunk));
      if (size() > 1) group_.exchange();
      sum(rank() * stride, parts + rank() * part_bytes + offset, chunk, dtype,
          static_cast<std::byte*>(output) + offset);
    });
  }

  void broadcast(void* data, std::int64_t num_bytes, int root, StreamHandle) override {
    MINISGL_CHECK(root >= 0 && root < size(), "root ", root, " of ", size());
    if (size() == 1) return;
    auto* bytes = static_cast<std::byte*>(data);
    for_chunks(num_bytes, kSlotBytes, [&](std::int64_t done, std::int64_t chunk) {
      if (rank() == root) copy_bytes(group_.own_slot(), bytes + done, chunk);
      group_.exchange();
      if (rank() != root) copy_bytes(bytes + done, group_.slot_of(root), chunk);
    });
  }

  void set_time_limit(const TimeLimit& limit) override { group_.set_time_limit(limit); }

  void barrier(StreamHandle) override {
    if (size() > 1) group_.exchange();
  }

 private:
  static void check_summable(DType dtype) { MINISGL_CHECK(!is_quantized(dtype), "a sum of ", dtype_info(dtype).name); }

  // body(first, number) for all of [0, count), `most` at a time.
  template <typename Body>
  static void for_chunks(std::int64_t count, std::int64_t most, Body body) {
    for (std::int64_t done = 0; done < count; done += most) body(done, std::min(most, count - done));
  }

  // The sum of what lies at `offset` of the other ranks' slots and of `own`.
  void sum(std::int64_t offset, const std::byte* own, std::int64_t count, DType dtype, std::byte* out) {
    for (int other = 0; other < size(); ++other)
      inputs_[static_cast<std::size_t>(other)] = other == rank() ? own : group_.slot_of(other) + offset;
    sum_(inputs_.data(), size(), count, dtype, out);
  }

  void sum_all(std::byte* data, std::int64_t count, DType dtype) {
    copy_bytes(group_.own_slot(), data, row_bytes(dtype, count));
    group_.exchange();
    sum(0, data, count, dtype, data);
  }

  void sum_shares(std::byte* data, std::int64_t count, DType dtype) {
    const std::int64_t line = kLineBytes / row_bytes(dtype, 1);
    const auto begin = [&](int share) {  // byte; shares are whole lines but for the last
      return row_bytes(dtype, share == size() ? count : count / line * share / size() * line);
    };
    const std::int64_t own_begin = begin(rank()), own_end = begin(rank() + 1);
    copy_bytes(group_.own_slot(), data, own_begin);
    copy_bytes(group_.own_slot() + own_end, data + own_end, row_bytes(dtype, count) - own_end);
    group_.exchange();
    sum(own_begin, data + own_begin, (own_end - own_begin) / row_bytes(dtype, 1), dtype, group_.own_slot() + own_begin);
    group_.exchange();
    for (int share = 0; share < size(); ++share)
      copy_bytes(data + begin(share), group_.slot_of(share) + begin(share), begin(share + 1) - begin(share));
  }

  ShmGroup group_;
  std::vector<const void*> inputs_;  // [size]
  SumKernel sum_ = sum_kernel();
  PeerWatch watch_;  // last: its thread uses the group
};

}  // namespace

std::unique_ptr<Communicator> make_shm_communicator(const ShmOptions& options) {
  check_rank(options.rank, options.size);
  if (options.size == 1) return std::move(make_shm_communicators(1, options.timeout).front());
  const std::size_t num_bytes = ShmGroup::num_bytes(options.size);
  SharedGroup shared = gather_ranks(options.name, options.rank, options.size, num_bytes, options.timeout);
  auto communicator = std::make_unique<ShmCommunicator>(map_shared(num_bytes, shared.memory.get()), options.rank,
                                                        shared.pids, options.timeout);
  communicator->group().exchange();
  communicator->group().choose_waiting();
  return communicator;
}

std::vector<std::unique_ptr<Communicator>> make_shm_communicators(int size, std::chrono::milliseconds timeout) {
  check_rank(0, size);
  const auto memory = map_shared(ShmGroup::num_bytes(size), -1);
  const std::vector<pid_t> pids(static_cast<std::size_t>(size), getpid());
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (int rank = 0; rank < size; ++rank)
    communicators.push_back(std::make_unique<ShmCommunicator>(memory, rank, pids, timeout));
  for (const auto& communicator : communicators) static_cast<ShmCommunicator&>(*communicator).group().choose_waiting();
  return communicators;
}

}  // namespace minisgl
